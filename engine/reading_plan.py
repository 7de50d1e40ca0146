"""Plans what is read of a step's prompt rows, and hands the results to all who want them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trunkline.engine.agenda import Agenda
from trunkline.engine.prompt_reading import PromptRecord
from trunkline.engine.sequence import Sequence
from trunkline.engine.slots import SlotTable
from trunkline.engine.step_plan import ReadResult, RowReads, StepPlan


@dataclass(frozen=True)
class _LogprobDelivery:
    """The reads [first, last) are of the tokens from `position` on."""

    record: PromptRecord
    position: int
    first: int
    last: int


@dataclass(frozen=True)
class _PoolDelivery:
    record: PromptRecord
    pool: int
    num_rows: int


class _Collector:
    """Reads, pools and deliveries of one step."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.targets: list[int] = []
        self.num_top = 0
        self.pools: list[tuple[int, int]] = []
        self.deliveries: list[_LogprobDelivery | _PoolDelivery] = []

    def read(self, readers: list[Sequence], start: int, end: int, first_row: int) -> None:
        """The step computes the positions [start, end), which `readers` have in common.

        Args:
            first_row: the row of position `start`.
        """
        reading = readers[0].reading
        assert reading is not None, "a sharing group has readers of one kind only"
        records = [_record(sequence) for sequence in readers]
        # What is computed again, after pages were given up, has been read already: by all readers.
        read = {min(max(record.num_read, start), end) for record in records}
        assert len(read) == 1, "readers have what they share read for them together"
        unread = read.pop()
        first_row, start = first_row + unread - start, unread
        if start >= end:
            return
        for record in records:
            record.num_read = end
        if reading.num_top_logprobs is not None:
            self.num_top = max(self.num_top, reading.num_top_logprobs)
            self._read_logprobs(readers, records, start, end, first_row)
        if reading.pooling is not None:
            first, last = reading.pooled_rows(start, end, len(readers[0].prompt))
            if first < last:
                self.pools.append((first_row + first - start, first_row + last - start))
                self.deliveries += [
                    _PoolDelivery(record, len(self.pools) - 1, last - first) for record in records
                ]

    def _read_logprobs(
        self,
        readers: list[Sequence],
        records: list[PromptRecord],
        start: int,
        end: int,
        first_row: int,
    ) -> None:
        # The row of a position gives the token after it, which may differ after the last one.
        at = len(self.rows)
        num_common = end - start - 1
        self.rows += range(first_row, first_row + num_common)
        self.targets += readers[0].prompt[start + 1 : end].tolist()
        read_of: dict[int, int] = {}
        for sequence, record in zip(readers, records, strict=True):
            if num_common:
                self.deliveries.append(_LogprobDelivery(record, start + 1, at, at + num_common))
            if end == len(sequence.prompt):
                continue
            target = int(sequence.prompt[end])
            if target not in read_of:
                read_of[target] = len(self.rows)
                self.rows.append(first_row + num_common)
                self.targets.append(target)
            read = read_of[target]
            self.deliveries.append(_LogprobDelivery(record, end, read, read + 1))

    def reads(self) -> RowReads | None:
        if not self.deliveries:
            return None
        pools = np.array(self.pools, np.int64).reshape(-1, 2)
        return RowReads(
            row=np.array(self.rows, np.int64),
            target=np.array(self.targets, np.int64),
            num_top=self.num_top,
            pool_start=pools[:, 0],
            pool_end=pools[:, 1],
        )


class ReadingsInFlight:
    """What the steps in flight read, and for whom."""

    def __init__(self) -> None:
        self._deliveries: deque[list[_LogprobDelivery | _PoolDelivery]] = deque()

    def plan(
        self, agenda: Agenda, chains: Mapping[int, list[int]], table: SlotTable, plan: StepPlan
    ) -> RowReads | None:
        """What is to be read of the rows of `plan`, which is the next step in flight."""
        parts: list[tuple[int, int, int, list[Sequence]]] = []  # start, end, first row, readers
        slots = plan.entry_sequence
        reads = table.reads[slots] & (plan.entry_start < table.prompt_len[slots])
        first_rows = np.cumsum(plan.entry_length) - plan.entry_length
        for entry in np.flatnonzero(reads).tolist():
            slot, start = int(slots[entry]), int(plan.entry_start[entry])
            end = min(start + int(plan.entry_length[entry]), int(table.prompt_len[slot]))
            first_row = int(first_rows[entry])
            # Shared nodes are read for all below them, the rest for the sequence alone.
            nodes = [node for node in chains[slot] if agenda.plan.tree.end[node] > start]
            readers = [agenda.sequences_below(node) for node in nodes]
            ends = [int(agenda.plan.tree.end[node]) for node in nodes]
            for part_end, below in zip(
                [*ends, end], [*readers, [table.sequences[slot]]], strict=True
            ):
                until = min(part_end, end)
                if start < until:
                    parts.append((start, until, first_row, below))
                    first_row, start = first_row + until - start, until
        # A prefix may be computed by another entry of the same step, which comes later.
        collector = _Collector()
        for start, end, first_row, below in sorted(parts, key=lambda part: part[0]):
            collector.read(below, start, end, first_row)
        self._deliveries.append(collector.deliveries)
        return collector.reads()

    def deliver(self, result: ReadResult | None) -> None:
        """The oldest step has `result`."""
        for delivery in self._deliveries.popleft():
            assert result is not None, "a step that reads has what it read"
            record = delivery.record
            if isinstance(delivery, _PoolDelivery):
                record.add_pooled(result.pooled[delivery.pool], delivery.num_rows)
                continue
            reads = slice(delivery.first, delivery.last)
            num_top = record.top_ids.shape[1]
            at = slice(delivery.position, delivery.position + delivery.last - delivery.first)
            record.logprobs[at] = result.logprobs[reads]
            record.top_ids[at] = result.top_ids[reads, :num_top]
            record.top_logprobs[at] = result.top_logprobs[reads, :num_top]


def _record(sequence: Sequence) -> PromptRecord:
    if sequence.record is None:
        assert sequence.reading is not None
        sequence.record = PromptRecord.empty(sequence.reading, len(sequence.prompt))
    return sequence.record
