"""From outcomes to the output file and the error file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from trunkline.store.batch_file import output_line
from trunkline.store.blobs import BlobStore, BlobWriter
from trunkline.store.outcomes import Outcomes
from trunkline.store.records import OutcomeRow, StoredBlob


def write_results(
    outcomes: Outcomes, batch_id: str, blobs: BlobStore, still_ours: Callable[[], None]
) -> tuple[StoredBlob | None, StoredBlob | None]:
    """Write the results of a batch as JSONL.

    Args:
        still_ours: called now and then; raises when the work should stop.

    Returns:
        The output file's bytes and the error file's; None for one that would be empty.
    """
    with ExitStack() as stack:
        writers: dict[bool, BlobWriter] = {}
        for row in _checked_now_and_then(outcomes.by_line(batch_id), still_ours):
            is_success = row.outcome.status_code == 200
            if is_success not in writers:
                writers[is_success] = stack.enter_context(blobs.writer())
            line = output_line(row.custom_id, row.outcome, row.request_id)
            writers[is_success].write(line)
        written = {is_success: writer.commit() for is_success, writer in writers.items()}
    return written.get(True), written.get(False)


def _checked_now_and_then(
    rows: Iterator[OutcomeRow], still_ours: Callable[[], None]
) -> Iterator[OutcomeRow]:
    for count, row in enumerate(rows):
        if count % 1000 == 0:
            still_ours()
        yield row
