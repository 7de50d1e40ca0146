"""Iteration-level scheduling over a paged KV cache, planned over the whole set of sequences.

There are no prefill and decode phases: in every step each running sequence's computed tokens catch
up with its known tokens (Orca's iteration-level scheduling, with chunked prefill). A step is made
of

1. one token for every sequence in decode,
2. the next chunk of every sequence that is still behind, in planned order,
3. new sequences in planned order, as long as the step has token budget left and the *predicted
   peak* of KV memory fits the pool.

A shared node is computed by the first sequence that runs below it, its *leader*; the others start
in the very step that computes its last token, because every layer writes KV before it attends.
When a decode token finds no free page, the running sequence that is cheapest to recompute is
preempted: its own pages go back, its shared nodes stay, and it waits at its old place in the order.

Steps may be planned ahead of their results: `schedule` assumes that each sequence which samples
goes on, with a token that only the device knows yet, and `commit` settles the oldest step that is
in flight. What a sequence that has ended meanwhile got in a later step is dropped. Its pages are
given away at once, because the device runs steps in order. Nothing is preempted on an assumption.

Invariants (checked by `check_invariants`): free pages + nodes' pages + own pages = all pages; no
page is written by two sequences; a running sequence's page table covers its computed tokens; what
is known of it are its own tokens and one for each step in flight that samples it.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from trunkline.engine.agenda import Agenda
from trunkline.engine.block_pool import PagePool, Pages
from trunkline.engine.fitting import num_that_fit_later, num_that_fit_now, take_candidates
from trunkline.engine.in_flight import StepsInFlight
from trunkline.engine.lru_cache import LruCache
from trunkline.engine.planner import Plan, Sharing, make_plan
from trunkline.engine.reading_plan import ReadingsInFlight
from trunkline.engine.residency import NO_LEADER, SharedNodes
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import FinishReason, Sequence
from trunkline.engine.slots import SlotTable
from trunkline.engine.step_builder import build_step_plan
from trunkline.engine.step_plan import StepPlan, StepResult
from trunkline.engine.transfer import transfer_kv


def expect_max_tokens(sequence: Sequence) -> int:
    """The output length to plan for when nothing has been learned: all that is allowed."""
    return sequence.sampling.max_tokens


class Scheduler:
    """Decides what every step computes. Knows token ids and pages, but no tensors."""

    def __init__(
        self,
        config: SchedulerConfig,
        expected_output: Callable[[Sequence], int] = expect_max_tokens,
    ) -> None:
        self.config = config
        self._expected_output = expected_output
        self._pool = PagePool(config.num_pages)
        self._table = SlotTable()
        self._running: list[int] = []  # slots, sorted by rank
        self._chains: dict[int, list[int]] = {}  # slot -> nodes from the root down
        self._lru = (
            LruCache(self._pool, config.page_size) if config.sharing is Sharing.LRU else None
        )
        empty = self._make_plan([])
        self._agenda = Agenda(empty, SharedNodes(empty.tree, self._pool))
        self._in_flight = StepsInFlight(self._table)
        self._readings = ReadingsInFlight()
        self._num_steps = 0
        self.num_preemptions = 0
        self.peak_kv_pages = 0
        self.num_computed_prompt_tokens = 0
        self.num_output_tokens = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return self._agenda.num_waiting

    @property
    def num_steps(self) -> int:
        return self._num_steps

    @property
    def num_pages_held(self) -> int:
        """Pages that hold what is needed; cached ones that may be evicted are not counted."""
        return self.config.num_pages - self._num_available

    @property
    def has_work(self) -> bool:
        """Whether there is anything to schedule or to commit."""
        return bool(self._running or self._agenda.num_waiting or self._in_flight)

    @property
    def sequences(self) -> dict[int, Sequence]:
        """The running sequences by slot."""
        return self._table.sequences

    def unfinished(self) -> list[Sequence]:
        """All sequences that the scheduler still holds, running ones first."""
        running = [self._table.sequences[slot] for slot in self._running]
        return running + [self._agenda.sequence(rank) for rank in self._agenda.waiting]

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Plan `sequences` together with all that is unfinished; computed KV is kept.

        No step may be in flight.

        Raises:
            ValueError: a sequence can never fit the cache. Nothing is added then.
        """
        new = list(sequences)
        self._check_capacity(new)
        self._adopt(self._make_plan(self.unfinished() + new))

    def add_ahead(self, sequences: Iterable[Sequence]) -> None:
        """Let `sequences` go before all that waits, without a new plan: they share nothing.

        Steps may be in flight.

        Raises:
            ValueError: see `add`.
        """
        new = list(sequences)
        self._check_capacity(new)
        for sequence in new:
            self._agenda.put_ahead(sequence)

    def drop(self, should_drop: Callable[[Sequence], bool]) -> None:
        """Forget every sequence for which `should_drop` is true; their pages go back.

        No step may be in flight.
        """
        for slot in list(self._running):
            if should_drop(self._table.sequences[slot]):
                self._leave(slot, finished=True)
        kept = [sequence for sequence in self.unfinished() if not should_drop(sequence)]
        self._adopt(self._make_plan(kept))

    def withdraw(self, should_withdraw: Callable[[Sequence], bool]) -> None:
        """Like `drop`, without a new plan; steps may be in flight."""
        for slot in list(self._running):
            if should_withdraw(self._table.sequences[slot]):
                self._leave(slot, finished=True)
        self._agenda.remove(should_withdraw)

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None when there is nothing to do, or nothing before a `commit`."""
        if not (self._running or self._agenda.num_waiting) or self._needs_results():
            return None
        num_preempted = self._make_room_for_decode()
        slots = np.array(self._running, dtype=np.int64)
        behind = self._table.known[slots] - self._table.computed[slots]
        decoding = slots[(behind == 1) & ~self._table.is_through(slots)]
        budget = self.config.max_batch_tokens - len(decoding)
        chunks: dict[int, int] = {}
        for slot in slots[behind > 1].tolist():
            budget -= self._advance(slot, budget, chunks)
        if not num_preempted:
            self._admit(budget, chunks)
        return self._emit(decoding, chunks)

    def commit(self, result: StepResult) -> list[Sequence]:
        """Append the tokens of the oldest step in flight; return the sequences that this finished.

        Tokens of sequences that have ended since the step was planned are dropped.
        """
        self._readings.deliver(result.reads)
        is_received = self._in_flight.pop(result).tolist()
        self.num_output_tokens += is_received.count(True)
        finished = []
        for slot, token, logprobs, has_receiver in zip(
            result.sequence.tolist(),
            result.token_ids.tolist(),
            result.logprobs,
            is_received,
            strict=True,
        ):
            if not has_receiver:
                continue
            sequence = self._table.sequences[slot]
            sequence.output.append(token)
            if logprobs is not None:
                sequence.logprobs.append(logprobs)
            if token in sequence.sampling.stop_token_ids:
                sequence.finish_reason = FinishReason.STOP
            elif len(sequence.output) >= sequence.sampling.max_tokens:
                sequence.finish_reason = FinishReason.LENGTH
            else:
                continue
            self._leave(slot, finished=True)
            finished.append(sequence)
        return finished

    def receivers(self, result: StepResult) -> dict[int, Sequence]:
        """The sequences, by slot, that the tokens of the oldest step in flight are for."""
        slots = result.sequence[self._in_flight.is_received(result)].tolist()
        return {slot: self._table.sequences[slot] for slot in slots}

    def finish(self, slot: int) -> Sequence:
        """End the sequence in `slot` early, for example at a stop string."""
        sequence = self._table.sequences[slot]
        sequence.finish_reason = FinishReason.STOP
        self._leave(slot, finished=True)
        return sequence

    def check_invariants(self) -> None:
        """Raise AssertionError when pool, nodes, slots and order contradict each other."""
        table, size = self._table, self.config.page_size
        holdings = list(self._agenda.nodes.pages.values())
        holdings += [table.own_pages(slot, size) for slot in self._running]
        if self._lru is not None:
            holdings.append(self._lru.pages)
            self._lru.check_invariants()
        self._pool.check_invariants(holdings)
        self._agenda.nodes.check_invariants()
        assert self._running == sorted(self._running, key=table.rank.__getitem__)
        assert len(self._running) == len(table.sequences)
        for slot in self._running:
            table.check_invariants(slot, size)
            assert table.num_pending[slot] <= len(self._in_flight)
            for node in self._chains[slot]:
                tree = self._agenda.nodes.tree
                first, last = tree.start[node] // size, tree.end[node] // size
                assert (table.table[slot, first:last] == self._agenda.nodes.pages[node]).all()
        ranks = [int(table.rank[slot]) for slot in self._running] + self._agenda.waiting
        assert len(set(ranks)) == len(ranks)

    def _check_capacity(self, sequences: list[Sequence]) -> None:
        capacity = self.config.capacity_tokens
        for sequence in sequences:
            if sequence.max_num_tokens > capacity:
                raise ValueError(
                    f"a sequence may grow to {sequence.max_num_tokens} tokens; "
                    f"the KV cache holds {capacity}"
                )

    def _make_plan(self, sequences: list[Sequence]) -> Plan:
        return make_plan(tuple(sequences), self.config.planner, self._expected_output)

    def _adopt(self, plan: Plan) -> None:
        """Go on with a new plan, of all the unfinished sequences and perhaps more."""
        assert not self._in_flight, "results are committed before the plan changes"
        table = self._table
        nodes, self._chains = transfer_kv(
            table, self._running, self._agenda, self._chains, plan, self._pool
        )
        self._running.sort(key=table.rank.__getitem__)
        self._agenda = Agenda(plan, nodes, running=table.rank[self._running])

    def _needs_results(self) -> bool:
        """Whether the next step cannot be planned on what is assumed about those in flight.

        Their tokens may have to be known to sample the next ones. And when pages are short, they
        may end sequences, so that none has to be preempted.
        """
        if not self._in_flight:
            return False
        table, slots = self._table, np.array(self._running, dtype=np.int64)
        if (table.needs_tokens[slots] & (table.num_pending[slots] > 0)).any():
            return True
        return len(table.without_page(slots, self.config.page_size)) > self._num_available

    def _make_room_for_decode(self) -> int:
        """Give each sequence in decode the page its next token needs.

        Returns:
            The number of sequences that were preempted for it.
        """
        num_preempted = 0
        while True:
            slots = np.array(self._running, dtype=np.int64)
            need = self._table.without_page(slots, self.config.page_size)
            if len(need) <= self._num_available:
                break
            victim = self._cheapest_to_recompute(slots) if len(slots) > 1 else None
            if self._drop_idle_cheaper_than(victim):
                continue
            assert victim is not None, "one sequence alone fits the cache"
            self._preempt(victim)
            num_preempted += 1
        for slot, page in zip(need.tolist(), self._allocate(len(need)), strict=True):
            self._table.append_pages(slot, np.array([page], np.int32))
        return num_preempted

    def _drop_idle_cheaper_than(self, victim: int | None) -> bool:
        """Drop the shared node that is needed last, if computing it again costs less than `victim`.

        Returns:
            Whether a node was dropped.
        """
        furthest = self._agenda.furthest_idle()
        if furthest is None:
            return False
        node, nodes = furthest[0], self._agenda.nodes
        tokens = int(nodes.computed[node] - nodes.tree.start[node])
        if victim is not None:
            own = self._table.computed[victim] - self._table.own_start[victim]
            if tokens >= own:
                return False
        nodes.drop(node)
        return True

    @property
    def _num_available(self) -> int:
        """Pages that can be had without taking them from anybody."""
        return self._pool.num_free + (self._lru.num_evictable if self._lru is not None else 0)

    def _allocate(self, count: int) -> Pages:
        if self._lru is not None:
            self._lru.make_room(count)
        return self._pool.allocate(count)

    def _cheapest_to_recompute(self, slots: NDArray[np.int64]) -> int:
        """The slot with the fewest own tokens computed, the last in order among equals.

        The leader of an incomplete node comes last: others wait for what it computes.
        """
        own = self._table.computed[slots] - self._table.own_start[slots]
        leads = np.isin(slots, self._agenda.nodes.leader)
        return int(slots[np.lexsort((-self._table.rank[slots], own, leads))[0]])

    def _preempt(self, slot: int) -> None:
        rank = int(self._table.rank[slot])
        self._leave(slot, finished=False).num_preemptions += 1
        self._agenda.push(rank)
        self.num_preemptions += 1

    def _leave(self, slot: int, *, finished: bool) -> Sequence:
        """Take the sequence in `slot` out of the batch and give its pages back."""
        holder = self._pool if self._lru is None else self._lru
        holder.release(self._table.own_pages(slot, self.config.page_size))
        self._agenda.nodes.leave(self._chains.pop(slot), slot, finished=finished)
        at = bisect.bisect_left(
            self._running, int(self._table.rank[slot]), key=self._table.rank.__getitem__
        )
        del self._running[at]
        if finished:
            self._agenda.end(int(self._table.rank[slot]))
        return self._table.give_back(slot)

    def _admit(self, budget: int, chunks: dict[int, int]) -> None:
        """Start as many waiting sequences as budget and memory allow."""
        if self.config.policy is Policy.STATIC and self._running:
            return
        while self._agenda.num_waiting and budget > 0:
            candidates = take_candidates(
                self._agenda,
                self._lru,
                self.config.page_size,
                # A static batch is as large as memory allows, and computed over several steps.
                math.inf if self.config.policy is Policy.STATIC else budget,
                self.config.max_batch_tokens - len(self._running),
            )
            num_admitted = self._num_that_fit(candidates)
            while num_admitted < len(candidates) and self._agenda.drop_idle_needed_after(
                candidates[num_admitted]
            ):
                num_admitted = self._num_that_fit(candidates)
            if candidates and not num_admitted and not self._running:
                num_admitted = 1  # alone, with nothing else resident, any sequence fits
            for rank in candidates[num_admitted:]:
                self._agenda.push(rank)
            for rank in candidates[:num_admitted]:
                budget -= self._advance(self._start(rank), budget, chunks)
            if num_admitted < len(candidates) or not candidates:
                return

    def _num_that_fit(self, ranks: list[int]) -> int:
        """How many of `ranks`, from the first, there is memory for under the policy."""
        if self.config.policy is Policy.FCFS:
            return num_that_fit_now(
                ranks, self._agenda, self._lru, self._num_available, self.config.page_size
            )
        running = np.array(self._running, dtype=np.int64)
        return num_that_fit_later(
            ranks, self._agenda, self._table, running, self._expected_tokens, self.config
        )

    def _expected_tokens(self, sequence: Sequence) -> int:
        """Tokens that `sequence` is expected to have at its end."""
        output = min(self._expected_output(sequence), sequence.sampling.max_tokens)
        return len(sequence.prompt) + output

    def _start(self, rank: int) -> int:
        """Give the sequence at `rank` a slot and the pages of all its known tokens."""
        table, size = self._table, self.config.page_size
        sequence, chain = self._agenda.sequence(rank), self._agenda.chain(rank)
        own_start = self._agenda.shared_tokens(rank)
        known = sequence.num_tokens
        self._agenda.begin(rank)
        slot = table.take(sequence)
        for pages in self._agenda.nodes.acquire(chain):
            table.append_pages(slot, pages)
        if self._lru is not None:
            hits = self._lru.match_prompt(sequence)
            self._lru.acquire(hits)
            table.append_pages(slot, hits)
        num_pages = -(-known // size) - int(table.table_len[slot])
        num_cached = 0 if self._lru is None else int(table.table_len[slot]) * size
        table.append_pages(slot, self._allocate(num_pages))
        table.needs_tokens[slot] = sequence.sampling.needs_tokens
        table.reads[slot] = sequence.reading is not None
        table.prompt_len[slot] = len(sequence.prompt)
        table.known[slot] = known
        table.computed[slot] = num_cached
        table.own_start[slot] = own_start
        table.expected[slot] = self._expected_tokens(sequence)
        table.longest[slot] = sequence.max_num_tokens
        table.rank[slot] = rank
        table.leaf[slot] = self._agenda.leaf(rank)
        table.last_token[slot] = sequence.tokens(known - 1, known)[0]
        table.set_groups(slot, self._agenda.groups(rank), self._agenda.plan.tree.end)
        self._chains[slot] = chain
        bisect.insort(self._running, slot, key=table.rank.__getitem__)
        return slot

    def _advance(self, slot: int, budget: int, chunks: dict[int, int]) -> int:
        """Add the slot's next chunk, at most `budget` tokens, to `chunks`; its length.

        0 when the slot has to wait for a shared node that another one computes.
        """
        table, nodes = self._table, self._agenda.nodes
        position = nodes.computed_up_to(self._chains[slot], int(table.computed[slot]))
        table.computed[slot] = position
        node = nodes.first_incomplete(self._chains[slot])
        if budget <= 0 or (node is not None and nodes.leader[node] not in (NO_LEADER, slot)):
            return 0
        taken = min(budget, int(table.known[slot]) - position)
        nodes.lead(self._chains[slot], slot, position + taken)
        sequence = table.sequences[slot]
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = position
        if self._lru is not None and sequence.reading is None:
            computed = sequence.prompt[: position + taken]
            self._lru.insert(computed, table.own_pages(slot, self.config.page_size))
        chunks[slot] = taken
        return taken

    def _emit(self, decoding: NDArray[np.int64], chunks: dict[int, int]) -> StepPlan | None:
        """The plan; None when all that runs waits for its last token."""
        table = self._table
        lengths = np.zeros(len(table.known), np.int64)
        lengths[decoding] = 1
        lengths[list(chunks)] = list(chunks.values())
        running = np.array(self._running, dtype=np.int64)
        slots = running[lengths[running] > 0]
        if not len(slots):
            assert self._in_flight, "something can always run"
            return None
        plan = build_step_plan(self._num_steps, table, slots, lengths[slots], self.config.page_size)
        slots = plan.entry_sequence.astype(np.int64)  # in the plan's order
        taken = lengths[slots]
        reads = self._readings.plan(self._agenda, self._chains, table, plan)
        if reads is not None:
            plan = dataclasses.replace(plan, reads=reads)
        prompt_left = table.prompt_len[slots] - table.computed[slots]
        self.num_computed_prompt_tokens += int(np.clip(prompt_left, 0, taken).sum())
        table.computed[slots] += taken
        self._in_flight.push(slots[plan.entry_samples])
        self._num_steps += 1
        self.peak_kv_pages = max(self.peak_kv_pages, self.num_pages_held)
        return plan
