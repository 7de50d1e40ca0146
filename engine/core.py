"""The engine without a store: requests in, finished requests out, one step at a time.

A device that works beside the host is kept busy: step n+1 is planned and handed to it before the
result of step n is looked at. How many steps ahead is the runner's `lookahead`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from trunkline.engine.admission import Request
from trunkline.engine.detokenize import StopStringWatcher
from trunkline.engine.output_lengths import OutputLengths
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import Sequence
from trunkline.engine.step_plan import StepResult
from trunkline.engine.step_runner import RunningStep, StepRunner
from trunkline.engine.tokenizer import Tokenizer


class Engine:
    """Answers requests by stepping scheduler and runner."""

    def __init__(self, config: SchedulerConfig, runner: StepRunner, tokenizer: Tokenizer) -> None:
        self.output_lengths = OutputLengths()
        self.scheduler = Scheduler(config, self.output_lengths.expected)
        self.runner = runner
        self.tokenizer = tokenizer
        self._in_flight: deque[RunningStep] = deque()  # oldest first
        self._requests: dict[int, Request] = {}  # by Sequence.request_id
        self._finished: list[Request] = []  # that `step` has not returned yet
        # Of unfinished sequences with stop strings; an entry goes with its sequence.
        self._watchers: WeakKeyDictionary[Sequence, StopStringWatcher] = WeakKeyDictionary()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._finished)

    def add(self, requests: Iterable[Request]) -> None:
        """Plan `requests` together with all that is unfinished."""
        self._settle()
        added = list(requests)
        sequences = [sequence for request in added for sequence in request.sequences]
        self.scheduler.add(sequences)
        for request in added:
            self._requests[request.sequences[0].request_id] = request

    def drop(self, should_drop: Callable[[Request], bool]) -> None:
        """Stop working on every request for which `should_drop` is true; `step` returns none."""
        self._settle()
        self._finished = [request for request in self._finished if not should_drop(request)]
        dropped = {id_ for id_, request in self._requests.items() if should_drop(request)}
        self.scheduler.drop(lambda sequence: sequence.request_id in dropped)
        for request_id in dropped:
            del self._requests[request_id]

    def step(self) -> list[Request]:
        """Schedule, run, commit; the requests that this finished."""
        plan = self.scheduler.schedule()
        if plan is not None:
            self._in_flight.append(self.runner.submit(plan, self.scheduler.sequences))
        if self._in_flight and (plan is None or len(self._in_flight) > self.runner.lookahead):
            self._commit(self._in_flight.popleft().result())
        finished, self._finished = self._finished, []
        return finished

    def _settle(self) -> None:
        """Wait for all that is in flight."""
        while self._in_flight:
            self._commit(self._in_flight.popleft().result())

    def _commit(self, result: StepResult) -> None:
        watched = [
            (slot, sequence)
            for slot, sequence in self.scheduler.receivers(result).items()
            if sequence.sampling.stop_strings
        ]
        ended = self.scheduler.commit(result)
        for slot, sequence in watched:
            if self._meets_stop_string(sequence) and sequence.finish_reason is None:
                ended.append(self.scheduler.finish(slot))
        self._finished += [
            request for sequence in ended if (request := self._finished_with(sequence))
        ]

    def _meets_stop_string(self, sequence: Sequence) -> bool:
        """Whether the token that `sequence` got last completes one of its stop strings."""
        watcher = self._watchers.get(sequence)
        if watcher is None:
            watcher = StopStringWatcher(self.tokenizer, sequence.sampling.stop_strings)
            self._watchers[sequence] = watcher
        return watcher.push(sequence.output[-1])

    def _finished_with(self, sequence: Sequence) -> Request | None:
        """The request of `sequence`, if that was its last one to finish."""
        self.output_lengths.observe(sequence, len(sequence.output))
        request = self._requests[sequence.request_id]
        request.num_unfinished -= 1
        return None if request.num_unfinished else self._requests.pop(sequence.request_id)
