"""Following a batch to its end: by the server's events, by asking where those do not come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from trunkline.server.client.api import Api
from trunkline.server.client.errors import BatchNotAnswered, Refused, Unreachable
from trunkline.server.client.replies import Batch

# Between two questions, and before events are asked for again.
POLL_SECONDS = 2.0
# A server that restarts is waited for.
GIVE_UP_SECONDS = 300.0


def watch(api: Api, batch_id: str) -> Iterator[Batch]:
    """The batch at once and whenever it has changed, until it has ended.

    Raises:
        Unreachable: the server was away for long.
        Refused: it has no such batch, or the key is not valid.
    """
    batch = api.batch(batch_id)
    yield batch
    seen_at = time.monotonic()
    has_events = True
    while not batch.has_ended:
        if has_events:
            num_events = 0
            try:
                with closing(api.events(batch_id)) as events:
                    for latest in events:
                        num_events += 1
                        seen_at = time.monotonic()
                        if latest != batch:
                            batch = latest
                            yield batch
            except Unreachable as lost:
                # Something between here and there keeps the events for itself.
                has_events = not (lost.was_silent and num_events == 0)
            except Refused as refused:
                if refused.status_code in {401, 403}:
                    raise
                has_events = refused.status_code >= 500 or refused.status_code == 429
            if batch.has_ended:
                return
        time.sleep(POLL_SECONDS)
        try:
            latest = api.batch(batch_id)
        except (Unreachable, Refused) as error:
            is_passing = isinstance(error, Unreachable) or (
                error.status_code >= 500 or error.status_code == 429
            )
            if not is_passing or time.monotonic() - seen_at > GIVE_UP_SECONDS:
                raise
            continue
        seen_at = time.monotonic()
        if latest != batch:
            batch = latest
            yield batch


def check_all_answered(batch: Batch) -> None:
    """Raise BatchNotAnswered unless every line of an ended batch has its answer."""
    counts = batch.counts
    if batch.is_all_answered:
        return
    if batch.status == "failed":
        failures = batch.errors.data if batch.errors else ()
        first = f", first: {failures[0].sentence}" if failures else ""
        raise BatchNotAnswered(
            f"{batch.id} failed: its input file was refused and nothing ran "
            f"({len(failures)} errors{first}); mend the file and submit it again"
        )
    # Lines of a cancelled batch that never ran are not counted as failed.
    missing = max(counts.total - counts.completed, counts.failed)
    raise BatchNotAnswered(
        f"{batch.id} is {batch.status}, and {missing} of {counts.total} lines have no answer; "
        f"`trunkline fetch {batch.id} -o OUT.JSONL --errors ERRORS.JSONL` has the rest, "
        f"`trunkline retry {batch.id}` tries them again"
    )
