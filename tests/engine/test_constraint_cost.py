"""The cost of constraints in a step, as counted work: a time would say more of the machine.

llguidance's threads make the masks of all sequences, in one call a step. What Python does for a
mask grows neither with the vocabulary nor with the output. That all this goes on while the model
computes is what `test_masks_are_made_while_the_model_runs` says.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLExecutor

import trunkline
from trunkline.engine import sampler, token_masks
from trunkline.engine.grammar import Grammars
from trunkline.engine.requests.constraint import Constraint, ConstraintKind
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.token_masks import TokenMasks
from trunkline.engine.tokenizer import Tokenizer

PACKAGE = str(Path(trunkline.__file__).parent)
LETTERS = Constraint(ConstraintKind.REGEX, "[a-z]{300}", "guided_regex")
NUM_STEPS = 12
# Lines of Python that a mask may take, and a step besides; it was 39 when this was written.
MOST_LINES = 50


@pytest.fixture(scope="module")
def of_bytes(byte_folder: Path) -> Grammars:
    tokenizer = Tokenizer(byte_folder)
    return Grammars(tokenizer, tokenizer.vocab_size)


@pytest.fixture(scope="module")
def of_words(small_folder: Path) -> Grammars:
    tokenizer = Tokenizer(small_folder)
    return Grammars(tokenizer, tokenizer.vocab_size)


class Lines:
    """Counts the lines of this package that run, in the threads that begin meanwhile as well."""

    def __init__(self) -> None:
        self.count = 0

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        self.count += event == "line"
        return self._trace if frame.f_code.co_filename.startswith(PACKAGE) else None

    @contextmanager
    def counted(self) -> Iterator[None]:
        before, before_in_threads = sys.gettrace(), threading.gettrace()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(before_in_threads)  # type: ignore[arg-type] # None: not traced


def lines_of_steps(grammars: Grammars, num_sequences: int) -> list[int]:
    """Lines that each step's masks take; each sequence gets the first token that it may have."""
    params = SamplingParams(300, grammar=grammars.of(LETTERS))
    sequences = {i: Sequence(i, 0, np.array([9], np.int32), params) for i in range(num_sequences)}
    plan: Any = SimpleNamespace(
        entry_sequence=np.arange(num_sequences), entry_samples=np.ones(num_sequences, np.bool_)
    )
    masks, lines, counts = TokenMasks(grammars, 1), Lines(), []
    for _ in range(NUM_STEPS):
        before = lines.count
        with lines.counted():
            step_masks = masks.begin(plan, sequences)
            assert step_masks is not None
            found = step_masks.wait()
        counts.append(lines.count - before)
        bits = np.unpackbits(found.numpy().view(np.uint8), axis=1, bitorder="little")
        for sequence, allowed in zip(sequences.values(), bits, strict=True):
            sequence.output.append(int(allowed.argmax()))
    return counts


def test_python_does_as_much_for_a_mask_whatever_it_is_of(
    of_bytes: Grammars, of_words: Grammars
) -> None:
    alone, together = lines_of_steps(of_bytes, 1), lines_of_steps(of_bytes, 33)
    per_mask = (together[-1] - alone[-1]) / 32
    assert 0 < per_mask < MOST_LINES
    assert alone[-1] - per_mask < MOST_LINES, "what a step costs besides"
    for counts in (alone, together):
        assert set(counts[1:]) == {counts[-1]}, "later steps cost no more"
    assert lines_of_steps(of_words, 33) == together


@pytest.mark.parametrize("num_sequences", [1, 32])
def test_all_masks_of_a_step_are_made_in_one_call(
    of_bytes: Grammars, monkeypatch: pytest.MonkeyPatch, num_sequences: int
) -> None:
    calls: list[tuple[str, int]] = []
    threads: set[str] = set()

    class CountingExecutor:
        """Writes down what is asked of an executor, and for how many matchers."""

        def __init__(self, *args: Any) -> None:
            calls.append(("start", 0))
            self._executor = LLExecutor(*args)

        def __getattr__(self, name: str) -> Any:
            def call(matchers: list[Any], *args: Any) -> Any:
                calls.append((name, len(matchers)))
                threads.add(threading.current_thread().name)
                return getattr(self._executor, name)(matchers, *args)

            return call

    copied: list[str] = []
    matcher = Grammars.matcher
    monkeypatch.setattr(token_masks, "LLExecutor", CountingExecutor)
    monkeypatch.setattr(
        Grammars, "matcher", lambda self, text: copied.append(text) or matcher(self, text)
    )
    lines_of_steps(of_bytes, num_sequences)
    fill = ("unsafe_compute_mask_ptr", num_sequences)
    later = [("consume_token_par", num_sequences), fill]
    assert calls == [("start", 0), fill, *(NUM_STEPS - 1) * later]
    assert len(copied) == num_sequences, "a matcher goes on from step to step"
    (thread,) = threads
    assert thread.startswith("token-masks")


def test_all_masks_of_a_step_are_applied_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[int] = []
    apply = sampler.apply_token_masks

    def count(logits: torch.Tensor, masks: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        applied.append(len(masks))
        return apply(logits, masks, rows)

    monkeypatch.setattr(sampler, "apply_token_masks", count)
    sequences = [
        Sequence(i, 0, np.array([1], np.int32), SamplingParams(9, seed=i)) for i in range(40)
    ]
    rows = np.arange(0, 40, 2)
    positions = np.ones(40, np.int64)
    batch = sampler.sampling_batch(sequences, positions, 64, torch.device("cpu"), rows)
    masks = torch.zeros(len(rows), 2, dtype=torch.int32)
    masks[:, 1] = 1 << 5
    tokens = sampler.sample(torch.zeros(40, 64), batch, masks)
    assert applied == [20]
    assert set(tokens[::2].tolist()) == {37}
    assert len(set(tokens[1::2].tolist())) > 5
