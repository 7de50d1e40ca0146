"""The tokens that grammars allow next, found by other threads while the model computes the logits.

A step's masks are begun before the step is handed to the device and waited for when its logits are
there. One thread reads the tokens that the sequences got last, and has llguidance's own threads
fill the masks of all constrained rows.

An output is complete where its grammar allows nothing more; there a mask has the end-of-sequence
tokens alone. They end the sequence, also one that ignores them elsewhere. `min_tokens` holds stop
tokens back as long as the grammar allows anything else.

A grammar may begin behind a token that ends reasoning. Where an output need not begin with
reasoning, its first token is either the one that opens it or one that the grammar allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLExecutor
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.grammar import GrammarError, Grammars, Matcher
from trunkline.engine.sequence import Sequence
from trunkline.engine.step_masks import StepMasks
from trunkline.engine.step_plan import StepPlan


@dataclass
class _Progress:
    """How far a constrained sequence has come."""

    num_read: int = 0  # tokens of the output
    follows: bool = False  # the grammar, from token `num_read` on at the latest
    matcher: Matcher | None = None  # has read what follows the grammar, up to `num_read`
    failure: str | None = None


@dataclass(frozen=True)
class _Row:
    """What the mask of a row is made from."""

    progress: _Progress
    grammar: str
    new_tokens: list[int]  # follow what the matcher has read
    held_back: tuple[int, ...]  # tokens that may come only if there is no other
    besides: int | None = None  # a token that may come though the grammar does not have it


class TokenMasks:
    """Owns the matchers of the sequences that follow a grammar."""

    def __init__(self, grammars: Grammars, num_threads: int | None = None) -> None:
        """Start no thread yet.

        Args:
            grammars: the model's.
            num_threads: that fill masks at once; None: as llguidance sees fit.
        """
        self._grammars = grammars
        self._num_threads = num_threads
        self._executor: LLExecutor | None = None
        self._has_gpu = torch.cuda.is_available()
        # One, so that a matcher is used by one step at a time, in the order of the steps.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="token-masks")
        self._progress: WeakKeyDictionary[Sequence, _Progress] = WeakKeyDictionary()

    def begin(self, plan: StepPlan, sequences: Mapping[int, Sequence]) -> StepMasks | None:
        """Begin the masks of a step; None where no row that is sampled follows a grammar.

        Args:
            plan: the step. No sequence that has a grammar and is sampled has a pending token.
            sequences: by slot.
        """
        slots = plan.entry_sequence[plan.entry_samples].tolist()
        found = [
            (row, what)
            for row, slot in enumerate(slots)
            if sequences[slot].sampling.grammar is not None
            and (what := self._read(sequences[slot])) is not None
        ]
        if not found:
            return None
        return StepMasks(
            rows=np.array([row for row, _ in found], np.int64),
            _masks=self._thread.submit(self._fill, [what for _, what in found]),
        )

    def follows_grammar(self, sequence: Sequence) -> bool:
        """Whether the last token of `sequence` was sampled by its grammar."""
        progress = self._progress.get(sequence)
        if progress is None:
            return False
        is_first = len(sequence.output) == 1
        return progress.follows or (is_first and _begins_with_grammar(sequence))

    def failure(self, sequence: Sequence) -> str | None:
        """Why the next token of `sequence` cannot be told; its mask was no use. None: it can.

        The masks of the step that sampled it have been waited for.
        """
        progress = self._progress.get(sequence)
        return None if progress is None else progress.failure

    def forget(self, sequence: Sequence) -> None:
        """Free what is kept for a sequence that is finished."""
        self._progress.pop(sequence, None)

    def _read(self, sequence: Sequence) -> _Row | None:
        """What the next mask is made from; None while the sequence may have any token."""
        sampling, output = sequence.sampling, sequence.output
        assert sampling.grammar is not None
        progress = self._progress.get(sequence)
        if progress is None:
            progress = self._progress[sequence] = _Progress()
            progress.follows = sampling.grammar_after_token is None
        if not output and not progress.follows:
            if sampling.grammar_unless_first_token is None:
                return None
            # The first token says whether the grammar begins with it.
            return _Row(progress, sampling.grammar, [], (), sampling.grammar_unless_first_token)
        new_tokens = output[progress.num_read :]
        progress.num_read = len(output)
        if not progress.follows and _begins_with_grammar(sequence):
            progress.follows = True
        elif not progress.follows:
            assert sampling.grammar_after_token is not None
            if sampling.grammar_after_token not in new_tokens:
                return None
            progress.follows = True
            new_tokens = new_tokens[new_tokens.index(sampling.grammar_after_token) + 1 :]
        is_held_back = len(output) < sampling.min_tokens
        return _Row(
            progress,
            sampling.grammar,
            new_tokens,
            tuple(sampling.stop_token_ids | self._grammars.eos_token_ids) if is_held_back else (),
        )

    def _fill(self, rows: list[_Row]) -> Tensor:
        """[len(rows), num_words] int32"""
        if self._executor is None:
            self._executor = LLExecutor(self._num_threads)
        masks = torch.empty(
            (len(rows), self._grammars.num_mask_words),
            dtype=torch.int32,
            pin_memory=self._has_gpu,
        )
        matchers = [self._matcher_of(row) for row in rows]
        behind = [
            (matcher, row.new_tokens[0])
            for matcher, row in zip(matchers, rows, strict=True)
            if matcher is not None and len(row.new_tokens) == 1
        ]
        if behind:
            self._executor.consume_token_par(behind)
        ready = [(matcher, i) for i, matcher in enumerate(matchers) if matcher is not None]
        if ready:
            self._executor.unsafe_compute_mask_ptr(
                ready, masks.data_ptr(), 4 * masks.shape[1], len(rows)
            )
        words = masks.numpy().view(np.uint32)
        for mask, row, matcher in zip(words, rows, matchers, strict=True):
            # A matcher that has met an error, also while it read, stays in it.
            if matcher is not None and matcher.is_error():
                row.progress.failure = matcher.get_error().strip()
            if row.progress.failure is not None:
                _only(mask, self._grammars.eos_token_ids)
                continue
            if row.held_back:
                _hold_back(mask, row.held_back)
            if row.besides is not None:
                _allow(mask, row.besides)
        return masks

    def _matcher_of(self, row: _Row) -> Matcher | None:
        """The row's matcher, which has read all new tokens but a single one; None: there is none.

        More than one is rare: of a sequence that had tokens before it came to this engine.
        """
        if row.progress.matcher is None:
            try:
                row.progress.matcher = self._grammars.matcher(row.grammar)
            except GrammarError as error:
                row.progress.failure = str(error)
                return None
        if len(row.new_tokens) > 1:
            row.progress.matcher.consume_tokens(row.new_tokens)
        return row.progress.matcher


def _begins_with_grammar(sequence: Sequence) -> bool:
    """Whether an output, which has begun, follows its grammar from its beginning."""
    opening = sequence.sampling.grammar_unless_first_token
    return opening is not None and sequence.output[0] != opening


def _only(mask: NDArray[np.uint32], tokens: frozenset[int]) -> None:
    mask[:] = 0
    for token in tokens:
        _allow(mask, token)


def _allow(mask: NDArray[np.uint32], token: int) -> None:
    if token < 32 * len(mask):
        mask[token // 32] |= np.uint32(1 << token % 32)


def _hold_back(mask: NDArray[np.uint32], tokens: tuple[int, ...]) -> None:
    """Forbid `tokens`, unless nothing else is allowed."""
    kept = mask.copy()
    for token in tokens:
        if token < 32 * len(mask):
            kept[token // 32] &= ~np.uint32(1 << token % 32)
    if kept.any():
        mask[:] = kept
