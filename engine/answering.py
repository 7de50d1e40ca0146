"""What the loop and `trunkline run` need of an engine, whichever kind of model it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from trunkline.engine.output_lengths import OutputLengths
from trunkline.engine.request import Line, Refusal, Request
from trunkline.engine.sequence import Sequence
from trunkline.engine.tokenizer import Tokenizer


@dataclass(frozen=True)
class Counts:
    """How an engine stands: what is there now, and what it has done since it was made."""

    num_running: int  # sequences
    num_waiting: int
    num_steps: int
    num_computed_prompt_tokens: int
    num_output_tokens: int = 0
    num_preemptions: int = 0
    # Of the KV cache; none, where the model needs none.
    kv_pages_in_use: int = 0
    kv_pages: int = 0
    peak_kv_tokens: int = 0


class AnswerEngine(Protocol):
    """Answers requests, one step at a time. Only `counts` may be called from another thread."""

    output_lengths: OutputLengths

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to return."""

    def add(self, requests: Iterable[Request]) -> None:
        """Plan `requests` together with all that is unfinished."""

    def drop(self, should_drop: Callable[[Request], bool]) -> None:
        """Stop working on every request for which `should_drop` is true; `step` returns none."""

    def add_ahead(self, requests: Iterable[Request]) -> None:
        """Like `add`, before all that waits, and at once."""

    def withdraw(self, should_withdraw: Callable[[Request], bool]) -> None:
        """Like `drop`, for a few of many requests, and at once."""

    def step(self) -> list[Request]:
        """Do a part of the work; the requests that this finished."""

    def counts(self) -> Counts:
        """How things stand."""


class LineAdmission(Protocol):
    """Turns lines into requests."""

    def admit(self, lines: Iterable[Line]) -> Iterator[Request | Refusal]:
        """Each line's request, or what is wrong with it, in the order of the lines."""


class Summariser(Protocol):
    """Summarises plans, and learns from what batches really took."""

    def learn(self, floor_seconds: float, actual_seconds: float) -> None:
        """A batch whose floor was `floor_seconds` took `actual_seconds`, with nothing beside it."""

    def summarise(
        self, sequences: list[Sequence], expected_output: Callable[[Sequence], int]
    ) -> dict[str, Any]:
        """The plan of one batch by itself, an object for JSON with the key `floor_seconds`."""
