"""What becomes of a line before it runs: its sequences, or its own error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trunkline.engine.admission import Admission, Limits
from trunkline.engine.grammar import Grammars
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.prompt_reading import Pooling
from trunkline.engine.request import Line, Refusal, Request
from trunkline.engine.tokenizer import Tokenizer
from trunkline.store.endpoints import COMPLETIONS, EMBEDDINGS


def make_admission(folder: Path, limits: Limits, num_logits: int = 260) -> Admission:
    tokenizer = Tokenizer(folder)
    return Admission(
        tokenizer,
        limits,
        Grammars(tokenizer, num_logits),
        PoolingConfig(Pooling.LAST, normalizes=True),
        num_dimensions=4,
    )


@pytest.fixture(scope="module")
def admission(byte_folder: Path) -> Admission:
    return make_admission(byte_folder, Limits(max_model_tokens=100, kv_cache_tokens=80))


def admitted(admission: Admission, endpoint: str = COMPLETIONS, **body: Any) -> Request | Refusal:
    (found,) = admission.admit([Line("b", 1, "x", endpoint, {"model": "m", **body})])
    return found


@pytest.mark.parametrize("key", ["-1", "260", "1.0", "", "٤", "9" * 5000, "x"])
def test_a_logit_bias_of_no_token(admission: Admission, key: str) -> None:
    found = admitted(admission, prompt="a", logit_bias={key: 1})
    assert isinstance(found, Refusal)
    assert (found.error.param, found.error.code) == ("logit_bias", "invalid_value")


def test_logit_biases(admission: Admission) -> None:
    found = admitted(admission, prompt="a", logit_bias={"0": 1, "259": -2.5})
    assert isinstance(found, Request)
    assert found.sequences[0].sampling.logit_bias == ((0, 1.0), (259, -2.5))


@pytest.mark.parametrize(("length", "max_tokens", "fits"), [(64, 16, True), (65, 16, False)])
def test_what_is_longer_than_the_cache(
    admission: Admission, length: int, max_tokens: int, fits: bool
) -> None:
    found = admitted(admission, prompt="a" * length, max_tokens=max_tokens)
    assert isinstance(found, Request) == fits
    if isinstance(found, Refusal):
        assert found.error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("endpoint", "name", "fields"),
    [(EMBEDDINGS, "input", {}), (COMPLETIONS, "prompt", {"max_tokens": 0, "echo": True})],
)
@pytest.mark.parametrize(("limits", "longest"), [(Limits(10, 80), 10), (Limits(80, 10), 9)])
def test_a_prompt_that_is_only_read_may_fill_the_context(
    byte_folder: Path, endpoint: str, name: str, fields: Any, limits: Limits, longest: int
) -> None:
    """In the cache there has to be room for the token that is thrown away."""
    admission = make_admission(byte_folder, limits)
    for length in (longest, longest + 1):
        found = admitted(admission, endpoint, **{name: "a" * length}, **fields)
        assert isinstance(found, Request) == (length == longest)


def test_the_best_of_more_have_log_probabilities(admission: Admission) -> None:
    found = admitted(admission, prompt=["a", "b"], n=2, best_of=3)
    assert isinstance(found, Request)
    assert len(found.sequences) == 6
    assert {s.sampling.num_top_logprobs for s in found.sequences} == {0}
    assert len({s.sampling.seed for s in found.sequences}) == 6


def test_a_prompt_that_is_only_read(admission: Admission) -> None:
    found = admitted(admission, prompt="ab", max_tokens=0, echo=True, logprobs=3)
    assert isinstance(found, Request)
    (sequence,) = found.sequences
    assert sequence.is_read_only
    assert sequence.sampling.max_tokens == 1
    assert sequence.reading is not None
    assert sequence.reading.num_top_logprobs == 3


def test_streams_are_for_those_who_wait(admission: Admission) -> None:
    found = admitted(admission, prompt="a", stream=True)
    assert isinstance(found, Refusal)
    assert found.error.code == "streaming_unsupported"


def test_a_token_that_the_tokenizer_has_and_the_model_has_not(byte_folder: Path) -> None:
    admission = make_admission(byte_folder, Limits(100, 100), num_logits=259)
    assert isinstance(admitted(admission, prompt=[[258]]), Request)
    for body in ({"prompt": [[259]]}, {"prompt": "a", "logit_bias": {"259": 1}}):
        assert isinstance(admitted(admission, **body), Refusal)
