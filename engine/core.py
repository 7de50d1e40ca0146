"""The engine without a store: requests in, finished requests out, one step at a time.

A device that works beside the host is kept busy: step n+1 is planned and handed to it before the
result of step n is looked at. How many steps ahead is the runner's `lookahead`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from trunkline.engine.answering import Counts
from trunkline.engine.detokenize import StopStringWatcher
from trunkline.engine.grammar import Grammars
from trunkline.engine.output_lengths import OutputLengths
from trunkline.engine.prompt_reading import PromptReading
from trunkline.engine.request import Request
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import SchedulerConfig
from trunkline.engine.sequence import FinishReason, Sequence
from trunkline.engine.step_plan import StepResult
from trunkline.engine.step_runner import RunningStep, StepRunner
from trunkline.engine.token_masks import TokenMasks
from trunkline.engine.tokenizer import Tokenizer

# With more sequences than this a new plan takes longer than a step.
MOST_TO_REPLAN = 1000


class Engine:
    """Answers requests by stepping scheduler and runner."""

    def __init__(
        self,
        config: SchedulerConfig,
        runner: StepRunner,
        tokenizer: Tokenizer,
        grammars: Grammars | None = None,
    ) -> None:
        """Start idle.

        Args:
            config: of the scheduler.
            runner: computes the steps.
            tokenizer: the model's.
            grammars: of the same model; None: no sequence follows a grammar.
        """
        self.output_lengths = OutputLengths()
        self.scheduler = Scheduler(config, self.output_lengths.expected)
        self.runner = runner
        self.tokenizer = tokenizer
        self._token_masks = None if grammars is None else TokenMasks(grammars)
        self._in_flight: deque[RunningStep] = deque()  # oldest first
        self._requests: dict[int, Request] = {}  # by Sequence.request_id
        self._num_reading_groups = 0
        self._finished: list[Request] = []  # that `step` has not returned yet
        # Of unfinished sequences with stop strings.
        self._watchers: dict[Sequence, StopStringWatcher] = {}

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._finished)

    def add(self, requests: Iterable[Request]) -> None:
        """Plan `requests` together with all that is unfinished.

        Raises:
            ValueError: a sequence can never fit the cache, or has a grammar and the engine takes
                none. Nothing is added then.
        """
        self._settle()
        added = list(requests)
        sequences = [sequence for request in added for sequence in request.sequences]
        self._check_grammars(sequences)
        self._group_readers(sequences)
        self.scheduler.add(sequences)
        self._register(added)

    def add_ahead(self, requests: Iterable[Request]) -> None:
        """Let `requests` go before all that waits.

        When there is much else they are not planned, so that nothing has to wait for a plan, and
        share nothing then.

        Raises:
            ValueError: see `add`.
        """
        added = list(requests)
        sequences = [sequence for request in added for sequence in request.sequences]
        num_sequences = self.scheduler.num_running + self.scheduler.num_waiting + len(sequences)
        if num_sequences <= MOST_TO_REPLAN:
            self.add(added)
            return
        self._check_grammars(sequences)
        for sequence in sequences:
            self._group_readers([sequence])  # they compute apart, and so have not read alike
        self.scheduler.add_ahead(sequences)
        self._register(added)

    def _check_grammars(self, sequences: list[Sequence]) -> None:
        if self._token_masks is None and any(s.sampling.grammar is not None for s in sequences):
            raise ValueError("a sequence has a grammar, and this engine takes none")

    def _group_readers(self, sequences: list[Sequence]) -> None:
        """Sequences that read alike, and are added together, share among themselves only."""
        groups: dict[PromptReading, int] = {}
        for sequence in sequences:
            if sequence.reading is not None:
                if sequence.reading not in groups:
                    self._num_reading_groups += 1
                    groups[sequence.reading] = self._num_reading_groups
                sequence.sharing_group = groups[sequence.reading]

    def _register(self, requests: list[Request]) -> None:
        for request in requests:
            self._requests[request.sequences[0].request_id] = request

    def drop(self, should_drop: Callable[[Request], bool]) -> None:
        """Stop working on every request for which `should_drop` is true; `step` returns none."""
        self._settle()
        self._finished = [request for request in self._finished if not should_drop(request)]
        dropped = {id_ for id_, request in self._requests.items() if should_drop(request)}
        self.scheduler.drop(lambda sequence: sequence.request_id in dropped)
        self._forget_requests(dropped)

    def withdraw(self, should_withdraw: Callable[[Request], bool]) -> None:
        """Like `drop`, for a few of many: what is left is not planned anew."""
        self._finished = [r for r in self._finished if not should_withdraw(r)]
        gone = {id_ for id_, request in self._requests.items() if should_withdraw(request)}
        self.scheduler.withdraw(lambda sequence: sequence.request_id in gone)
        self._forget_requests(gone)

    def _forget_requests(self, request_ids: Iterable[int]) -> None:
        for request_id in request_ids:
            for sequence in self._requests.pop(request_id).sequences:
                self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        """Free what is kept for an unfinished sequence; the scheduler's plan may keep itself."""
        self._watchers.pop(sequence, None)
        if self._token_masks is not None:
            self._token_masks.forget(sequence)

    def step(self) -> list[Request]:
        """Schedule, run, commit; the requests that this finished."""
        plan = self.scheduler.schedule()
        if plan is not None:
            sequences = self.scheduler.sequences
            masks = None if self._token_masks is None else self._token_masks.begin(plan, sequences)
            self._in_flight.append(self.runner.submit(plan, sequences, masks))
        if self._in_flight and (plan is None or len(self._in_flight) > self.runner.lookahead):
            self._commit(self._in_flight.popleft().result())
        finished, self._finished = self._finished, []
        return finished

    def counts(self) -> Counts:
        """How things stand; from any thread."""
        scheduler = self.scheduler
        return Counts(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_steps=scheduler.num_steps,
            num_computed_prompt_tokens=scheduler.num_computed_prompt_tokens,
            num_output_tokens=scheduler.num_output_tokens,
            num_preemptions=scheduler.num_preemptions,
            kv_pages_in_use=scheduler.num_pages_held,
            kv_pages=scheduler.config.num_pages,
            peak_kv_tokens=scheduler.peak_kv_pages * scheduler.config.page_size,
        )

    def _settle(self) -> None:
        """Wait for all that is in flight."""
        while self._in_flight:
            self._commit(self._in_flight.popleft().result())

    def _commit(self, result: StepResult) -> None:
        watched = [
            (slot, sequence)
            for slot, sequence in self.scheduler.receivers(result).items()
            if sequence.sampling.stop_strings or sequence.sampling.grammar is not None
        ]
        ended = self.scheduler.commit(result)
        for slot, sequence in watched:
            if not (self._meets_stop_string(sequence) or self._completes_grammar(sequence)):
                continue
            if sequence.finish_reason is None:
                ended.append(self.scheduler.finish(slot))
            sequence.finish_reason = FinishReason.STOP  # also with the last token allowed
        self._finished += [
            request for sequence in ended if (request := self._finished_with(sequence))
        ]

    def _meets_stop_string(self, sequence: Sequence) -> bool:
        """Whether the token that `sequence` got last completes one of its stop strings."""
        if not sequence.sampling.stop_strings:
            return False
        watcher = self._watchers.get(sequence)
        if watcher is None:
            watcher = StopStringWatcher(self.tokenizer, sequence.sampling.stop_strings)
            self._watchers[sequence] = watcher
        return watcher.push(sequence.output[-1])

    def _completes_grammar(self, sequence: Sequence) -> bool:
        """Whether the token that `sequence` got last ends what follows a grammar.

        It does so even where the sequence's own stop tokens lack it. A sequence whose grammar
        failed is through as well.
        """
        if self._token_masks is None or not self._token_masks.follows_grammar(sequence):
            return False
        sequence.failure = self._token_masks.failure(sequence)
        is_end = sequence.output[-1] in self.tokenizer.eos_token_ids
        return is_end or sequence.failure is not None

    def _finished_with(self, sequence: Sequence) -> Request | None:
        """The request of `sequence`, if that was its last one to finish."""
        if sequence.is_read_only:
            sequence.output.clear()
            sequence.logprobs.clear()
        else:
            self.output_lengths.observe(sequence, len(sequence.output))
        self._forget(sequence)
        request = self._requests[sequence.request_id]
        request.num_unfinished -= 1
        return None if request.num_unfinished else self._requests.pop(sequence.request_id)
