"""Likelihoods, embeddings and scores; transformers is the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.endpoints.asking import RERANK, SCORE, TEXTS, ask
from tests.e2e.small_engine import MODEL
from tests.models import small_model

pytestmark = pytest.mark.e2e


class Reference:
    """The small model, run by transformers."""

    def __init__(self) -> None:
        folder = small_model()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def token_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def embedding(self, text: str, num_dimensions: int | None = None) -> NDArray[np.float32]:
        """[num_dimensions]: the last token's vector behind the last norm, made one long."""
        with torch.inference_mode():
            hidden = self.model.model(torch.tensor([self.token_ids(text)])).last_hidden_state
        vector: NDArray[np.float32] = hidden[0, -1, :num_dimensions].numpy()
        return vector / np.linalg.norm(vector)

    def prompt_logprobs(self, text: str) -> list[float]:
        """Of each token but the first."""
        ids = torch.tensor([self.token_ids(text)])
        with torch.inference_mode():
            logprobs = self.model(ids).logits[0, :-1].log_softmax(-1)
        found: list[float] = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        return found


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def test_completions(client: openai.OpenAI, reference: Reference) -> None:
    text = "One, two, three,"
    ids = reference.token_ids(text)
    greedy: dict[str, Any] = {"model": MODEL, "temperature": 0}
    echoed = client.completions.create(**greedy, prompt=text, echo=True, logprobs=2, max_tokens=4)
    choice = echoed.choices[0]
    assert choice.text.startswith(text)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    offsets = choice.logprobs.text_offset
    assert offsets == [
        len("".join(choice.logprobs.tokens[:i])) for i in range(len(choice.logprobs.tokens))
    ]
    logprobs = choice.logprobs.token_logprobs
    assert logprobs is not None
    assert logprobs[0] is None
    assert logprobs[1 : len(ids)] == pytest.approx(reference.prompt_logprobs(text), abs=2e-3)
    assert choice.logprobs.top_logprobs is not None
    assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs[1:])
    assert echoed.usage is not None
    assert (echoed.usage.prompt_tokens, echoed.usage.completion_tokens) == (len(ids), 4)

    only_prompt = client.completions.create(
        **greedy, prompt=ids, echo=True, logprobs=0, max_tokens=0
    ).choices[0]
    assert only_prompt.text == text
    assert only_prompt.logprobs is not None
    assert only_prompt.logprobs.token_logprobs is not None
    assert only_prompt.logprobs.token_logprobs[1:] == pytest.approx(
        logprobs[1 : len(ids)], abs=2e-3
    )

    # Token ids, several prompts, several choices of each.
    continued = choice.text.removeprefix(text)
    several = client.completions.create(
        **greedy, prompt=[ids, reference.token_ids("Hot and")], n=2, max_tokens=4
    )
    assert [each.index for each in several.choices] == [0, 1, 2, 3]
    texts = [each.text for each in several.choices]
    assert texts[:2] == [continued, continued]
    assert texts[2] == texts[3] != continued
    streamed = list(client.completions.create(**greedy, prompt=text, max_tokens=4, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == continued

    drawn: dict[str, Any] = {"model": MODEL, "prompt": text, "seed": 1, "max_tokens": 3}
    drawn |= {"logprobs": 0, "extra_body": {"ignore_eos": True}}
    best = client.completions.create(**drawn, best_of=4, n=2)
    assert [each.index for each in best.choices] == [0, 1]
    all_four = client.completions.create(**drawn, n=4)
    sums, all_sums = (
        [sum(each.logprobs.token_logprobs) for each in found.choices] for found in (best, all_four)
    )
    assert sums == pytest.approx(sorted(all_sums, reverse=True)[:2], abs=2e-3)
    assert best.usage is not None
    assert best.usage.completion_tokens == 4 * 3  # those that were not chosen, too


def test_embeddings(client: openai.OpenAI, reference: Reference) -> None:
    wanted = [reference.embedding(text) for text in TEXTS]
    # The client asks for base64 unless told, and decodes it.
    default = client.embeddings.create(model=MODEL, input=TEXTS)
    as_floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    by_ids = client.embeddings.create(model=MODEL, input=[*map(reference.token_ids, TEXTS)])
    for found in (default, as_floats, by_ids):
        assert [each.index for each in found.data] == [0, 1, 2]
        vectors = np.array([each.embedding for each in found.data])
        np.testing.assert_allclose(vectors, wanted, atol=2e-4)
    assert default.usage.prompt_tokens == sum(len(reference.token_ids(text)) for text in TEXTS)
    short = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=32)
    np.testing.assert_allclose(
        short.data[0].embedding, reference.embedding(TEXTS[0], 32), atol=2e-4
    )
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=100_000)
    assert raised.value.param == "dimensions"


def test_score_and_rerank(site: Any, reference: Reference) -> None:
    first, *others = map(reference.embedding, TEXTS)
    wanted = [float(first @ other) for other in others]
    scored = ask(site, SCORE, {"model": MODEL, "text_1": TEXTS[0], "text_2": TEXTS[1:]})
    assert [each["score"] for each in scored["data"]] == pytest.approx(wanted, abs=1e-3)
    body = {"model": MODEL, "query": TEXTS[0], "documents": TEXTS[1:]}
    ranked = ask(site, RERANK, body)["results"]
    best = sorted(range(2), key=lambda i: -wanted[i])
    assert [each["index"] for each in ranked] == best
    assert [each["relevance_score"] for each in ranked] == pytest.approx(
        [wanted[i] for i in best], abs=1e-3
    )
    assert [each["document"]["text"] for each in ranked] == [TEXTS[1 + i] for i in best]
    assert len(ask(site, RERANK, {**body, "top_n": 1})["results"]) == 1
