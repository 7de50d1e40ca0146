"""What the commands do, once their arguments are read.

On standard output there is what a script takes: ids, tables, JSON, results. All else is on
standard error.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from trunkline.server.client.api import Api
from trunkline.server.client.display import (
    BatchWatch,
    make_console,
    show_batch,
    show_batches,
)
from trunkline.server.client.errors import BatchNotAnswered, ServerError, WrongUse
from trunkline.server.client.fetch import (
    STDOUT,
    Destinations,
    fetch_partial,
    fetch_results,
)
from trunkline.server.client.replies import Batch
from trunkline.server.client.settings import ClientSettings
from trunkline.server.client.submit import Submission, parse_metadata, submit
from trunkline.server.client.watch import check_all_answered, watch

# Between two questions for the pace of a batch that is watched.
PROGRESS_SECONDS = 2.0


@contextmanager
def _opened(settings: ClientSettings) -> Iterator[Api]:
    api = Api(settings)
    try:
        yield api
    finally:
        api.close()


def submit_batch(
    settings: ClientSettings,
    path: Path,
    endpoint: str | None,
    metadata: list[str],
    priority: int | None,
    *,
    is_watched: bool,
    output: str | None,
    errors: str | None,
    force: bool,
) -> None:
    """Submit a file; follow the batch and bring its results (`output`) if that is asked for."""
    submission = Submission(path, endpoint, parse_metadata(metadata), priority)
    destinations = None if output is None else Destinations(output, errors, force=force)
    if destinations is not None and submission.path.resolve() in {
        destinations.output,
        destinations.errors,
    }:
        raise WrongUse(f"the results cannot go to {submission.path}: it is the batch file itself")
    console = make_console(stderr=True)
    with _opened(settings) as api:
        batch = submit(api, submission, console)
        # Results on standard output must not be mixed with the id.
        typer.echo(batch.id, err=STDOUT in {output, errors})
        if not is_watched and destinations is None:
            return
        batch = _follow(api, batch.id)
        if destinations is not None and batch.status != "failed":
            try:
                fetch_results(api, batch, destinations)
            except BatchNotAnswered:
                if batch.is_all_answered:
                    raise
    check_all_answered(batch)


def show_list(settings: ClientSettings, limit: int, *, as_json: bool) -> None:
    with _opened(settings) as api:
        if as_json:
            _print_json(api.batches_json(limit))
        else:
            show_batches(make_console(), api.batches(limit))


def show_one(settings: ClientSettings, batch_id: str, *, is_watched: bool, as_json: bool) -> None:
    with _opened(settings) as api:
        batch = _follow(api, batch_id) if is_watched else None
        if as_json:
            _print_json(api.batch_json(batch_id))
        else:
            show_batch(make_console(), batch or api.batch(batch_id), api.progress(batch_id))
    if batch is not None:
        check_all_answered(batch)


def _follow(api: Api, batch_id: str) -> Batch:
    """Show a batch until it has ended."""
    progress, asked_at, has_progress = None, 0.0, True
    with BatchWatch(make_console(stderr=True)) as shown:
        for batch in watch(api, batch_id):
            now = time.monotonic()
            if has_progress and not batch.has_ended and now - asked_at >= PROGRESS_SECONDS:
                asked_at = now
                # It is `watch` that finds out whether the server is gone for good.
                with suppress(ServerError):
                    progress = api.progress(batch_id)
                    has_progress = progress is not None
            shown.update(batch, progress)
    return batch


def fetch_batch(
    settings: ClientSettings,
    batch_id: str,
    output: str,
    errors: str | None,
    *,
    is_partial: bool,
    force: bool,
) -> None:
    to = Destinations(output, errors, force=force, is_partial=is_partial)
    with _opened(settings) as api:
        if is_partial:
            result = fetch_partial(api, batch_id, to)
            rest = (
                "and the batch has ended: that is all"
                if result.is_complete
                else "the batch goes on: run this again for more"
            )
            plural = "" if result.num_new_lines == 1 else "s"
            typer.echo(f"{result.num_new_lines:,} new line{plural}, {rest}", err=True)
            return
        batch = api.batch(batch_id)
        fetch_results(api, batch, to)
        counts = batch.counts
        where = "" if to.has_errors else ": --errors FILE fetches the reasons"
        missing = max(counts.total - counts.completed, counts.failed)
        if missing:
            typer.echo(
                f"{counts.completed:,} lines fetched; {missing:,} of {counts.total:,} have no "
                f"answer{where}",
                err=True,
            )
        else:
            typer.echo(f"{counts.completed:,} lines fetched", err=True)


def act(settings: ClientSettings, batch_id: str, action: str) -> None:
    with _opened(settings) as api:
        batch = api.act(batch_id, action)
    paused = " (paused)" if batch.trunkline.paused_at and not batch.has_ended else ""
    typer.echo(f"{batch.id} is {batch.status}{paused}")


def retry_batch(settings: ClientSettings, batch_id: str) -> None:
    with _opened(settings) as api:
        batch = api.retry(batch_id, f"retry-{uuid.uuid4()}")
    typer.echo(f"the lines of {batch_id} without an answer are a new batch:", err=True)
    typer.echo(batch.id)


def _print_json(content: object) -> None:
    json.dump(content, sys.stdout, indent=2)
    sys.stdout.write("\n")
