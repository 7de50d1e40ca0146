"""The engine of an encoder: requests in, finished requests out, one padded batch at a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trunkline.engine.answering import Counts
from trunkline.engine.encoder.model import Encoder
from trunkline.engine.encoder.queue import InputQueue, Waiting
from trunkline.engine.encoder.sequence import EncoderSequence
from trunkline.engine.encoder.tokenizer import EncoderTokenizer
from trunkline.engine.output_lengths import OutputLengths
from trunkline.engine.prompt_reading import PromptReading, PromptRecord
from trunkline.engine.request import Request
from trunkline.engine.sequence import FinishReason


@dataclass(frozen=True)
class _RunningBatch:
    inputs: list[Waiting]
    result: Tensor  # [num_inputs, width], which the device may still be computing


class EncoderEngine:
    """Answers embedding and scoring requests. See `AnswerEngine`."""

    def __init__(
        self, encoder: Encoder, tokenizer: EncoderTokenizer, max_batch_tokens: int, lookahead: int
    ) -> None:
        """Run `encoder`.

        Args:
            max_batch_tokens: see `InputQueue`.
            lookahead: batches that are handed to the device before the oldest one's result is
                waited for; 0 where the host computes.
        """
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.output_lengths = OutputLengths()
        self._queue = InputQueue(max_batch_tokens)
        self._lookahead = lookahead
        self._in_flight: deque[_RunningBatch] = deque()  # oldest first
        self._requests: dict[int, Request] = {}  # unfinished, by Sequence.request_id
        self._num_running = 0  # sequences in flight
        self._num_steps = 0
        self._num_computed_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._queue.num_sequences or self._in_flight)

    def add(self, requests: Iterable[Request]) -> None:
        """Put `requests` among all that waits: the urgent first, then the long."""
        added = list(requests)
        sequences = [s for request in added for s in request.sequences]
        assert all(isinstance(s, EncoderSequence) for s in sequences), "admitted for an encoder"
        for request in added:
            self._requests[request.sequences[0].request_id] = request
        self._queue.add(s for s in sequences if isinstance(s, EncoderSequence))

    def add_ahead(self, requests: Iterable[Request]) -> None:
        """Like `add`: requests that clients wait for have a priority that puts them first."""
        self.add(requests)

    def drop(self, should_drop: Callable[[Request], bool]) -> None:
        """Stop working on every request for which `should_drop` is true; `step` returns none."""
        dropped = {id_ for id_, request in self._requests.items() if should_drop(request)}
        if not dropped:
            return
        self._queue.drop(dropped)
        for request_id in dropped:
            del self._requests[request_id]  # what of it is in flight finishes nothing

    def withdraw(self, should_withdraw: Callable[[Request], bool]) -> None:
        """Like `drop`, which never makes anyone wait."""
        self.drop(should_withdraw)

    def step(self) -> list[Request]:
        """Hand a batch to the device, take the result of the oldest."""
        batch = self._queue.pop_batch()
        if batch:
            self._begin(batch)
        if self._in_flight and (not batch or len(self._in_flight) > self._lookahead):
            return self._finish(self._in_flight.popleft())
        return []

    def counts(self) -> Counts:
        """How things stand; from any thread."""
        return Counts(
            num_running=self._num_running,
            num_waiting=self._queue.num_sequences,
            num_steps=self._num_steps,
            num_computed_prompt_tokens=self._num_computed_tokens,
        )

    def _begin(self, inputs: list[Waiting]) -> None:
        result = self.encoder.run([waiting.input for waiting in inputs])
        self._in_flight.append(_RunningBatch(inputs, result))
        self._num_running += sum(len(waiting.sequences) for waiting in inputs)
        self._num_steps += 1
        self._num_computed_tokens += sum(waiting.num_tokens for waiting in inputs)

    def _finish(self, batch: _RunningBatch) -> list[Request]:
        """Hand out the results of `batch`; the requests that have all of theirs."""
        finished: list[Request] = []
        for waiting, vector in zip(batch.inputs, batch.result.cpu().numpy(), strict=True):
            for i, sequence in enumerate(waiting.sequences):
                sequence.record = self._record(vector)
                sequence.finish_reason = FinishReason.STOP
                sequence.num_cached_tokens = waiting.num_tokens if i else 0
                request = self._requests.get(sequence.request_id)
                if request is None:  # dropped
                    continue
                request.num_unfinished -= 1
                if not request.num_unfinished:
                    finished.append(self._requests.pop(sequence.request_id))
            self._num_running -= len(waiting.sequences)
        return finished

    def _record(self, vector: NDArray[np.float32]) -> PromptRecord:
        reading = PromptReading(pooling=self.encoder.pooling.mode)
        record = PromptRecord.empty(reading, 0)
        record.add_pooled(vector, 1)
        return record
