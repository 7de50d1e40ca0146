"""What people see: tables and progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from trunkline.server.client.replies import Batch, BatchList, Progress

# Where lines are not wrapped: files and pipes.
PLAIN_WIDTH = 1000
# Between two lines about a batch that goes on, where there is no bar.
PLAIN_SECONDS = 10.0
MAX_LISTED = 10

STYLES = {
    "completed": "green",
    "failed": "red",
    "expired": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
}


def make_console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def clean(text: str) -> str:
    """One line without control characters, which could be commands to the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def show_batches(console: Console, batches: BatchList) -> None:
    if not batches.data:
        console.print("there are no batches")
        return
    now = time.time()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("done", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    table.add_column("created", no_wrap=True)
    table.add_column("model", no_wrap=True, overflow="ellipsis")
    for batch in batches.data:
        counts = batch.counts
        table.add_row(
            batch.id,
            _status(batch),
            f"{counts.completed + counts.failed:,}/{counts.total:,}",
            f"{counts.failed:,}",
            _ago(batch.created_at, now),
            clean(batch.model or "-"),
        )
    console.print(table)
    if batches.has_more:
        console.print("There are more: --limit shows up to 100.")


def show_batch(console: Console, batch: Batch, progress: Progress | None) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _details(batch, progress):
        table.add_row(name, value)
    console.print(table)


def _details(batch: Batch, progress: Progress | None) -> Iterator[tuple[str, str | Text]]:
    now, counts, usage = time.time(), batch.counts, batch.usage
    num_done = counts.completed + counts.failed
    yield "batch", batch.id
    yield "status", _status(batch)
    yield "model", clean(batch.model or "-")
    yield "endpoint", clean(batch.endpoint)
    share = f" ({num_done / counts.total:.0%})" if counts.total else ""
    yield "lines", f"{num_done:,} of {counts.total:,} done{share}, {counts.failed:,} failed"
    if batch.trunkline.priority:
        yield "priority", str(batch.trunkline.priority)
    if batch.trunkline.retry_of:
        yield "retry of", clean(batch.trunkline.retry_of)
    yield "created", f"{moment(batch.created_at)} ({_ago(batch.created_at, now)})"
    if progress and progress.elapsed_seconds is not None:
        yield "runs for" if not batch.has_ended else "ran for", duration(progress.elapsed_seconds)
    if batch.ended_at:
        yield "ended", f"{moment(batch.ended_at)} ({_ago(batch.ended_at, now)})"
    elif progress:
        yield "pace", pace(progress) or "nothing was answered in the last minute"
        if progress.eta_seconds is not None:
            yield "time left", f"about {duration(progress.eta_seconds)}"
    if not batch.has_ended and batch.expires_at:
        yield "must end by", moment(batch.expires_at)
    if usage and usage.input_tokens:
        yield "tokens", f"{usage.input_tokens:,} in, {usage.output_tokens:,} out"
        yield "saved", f"{usage.saved_share or 0:.0%} of the tokens in were not computed again"
    for key, value in (batch.metadata or {}).items():
        yield "metadata", clean(f"{key}={value}")
    for name, file_id in (
        ("input", batch.input_file_id),
        ("output", batch.output_file_id),
        ("errors", batch.error_file_id),
    ):
        if file_id:
            yield f"{name} file", clean(file_id)
    failures = batch.errors.data if batch.errors else ()
    for failure in failures[:MAX_LISTED]:
        yield "refused", clean(failure.sentence)
    if len(failures) > MAX_LISTED:
        yield "refused", f"and {len(failures) - MAX_LISTED:,} more lines"
    for group in progress.errors if progress else ():
        yield (
            "failed",
            clean(_group(group.count, group.status_code, group.code, group.message, group.lines)),
        )


def _group(
    count: int,
    status_code: int | None,
    code: str | None,
    message: str | None,
    lines: tuple[int, ...],
) -> str:
    reason = " ".join(str(part) for part in (status_code, code) if part is not None)
    said = ": ".join(part for part in (reason, message) if part)
    where = ", ".join(map(str, lines)) + (", …" if count > len(lines) else "")
    return f"{count:,} x {said} (line{'s' if count > 1 else ''} {where})"


def _status(batch: Batch) -> Text:
    paused = " (paused)" if batch.trunkline.paused_at and not batch.has_ended else ""
    style = "yellow" if paused else STYLES.get(batch.status, "cyan")
    return Text(clean(batch.status) + paused, style=style)


def pace(progress: Progress) -> str:
    """Empty if it is not known."""
    parts = [
        f"{rate(value)} {unit}/s"
        for value, unit in (
            (progress.requests_per_second, "requests"),
            (progress.output_tokens_per_second, "tokens"),
        )
        if value
    ]
    return ", ".join(parts)


def rate(value: float) -> str:
    """Two or more digits that matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def moment(seconds: int) -> str:
    """In the zone of whoever looks."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _ago(seconds: int, now: float) -> str:
    """In one unit, as far as that says enough."""
    whole = max(int(now - seconds), 0)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit} ago"
    return f"{whole} s ago"


@contextmanager
def byte_bar(console: Console, title: str, num_bytes: int) -> Iterator[ProgressBar]:
    """A bar with one task, of bytes; gone when it is over, and not there without a terminal."""
    with ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        bar.add_task(title, total=num_bytes)
        yield bar


class _NoteColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("note", "")))


class BatchWatch:
    """A batch as it goes on: a bar on a terminal, else a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed_at = 0.0
        self._printed_status = ""
        self._bar = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _NoteColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> BatchWatch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, batch: Batch, progress: Progress | None) -> None:
        counts = batch.counts
        status = _status(batch).plain
        note = ", ".join(_notes(batch, progress))
        if self._console.is_terminal:
            self._bar.update(
                self._task,
                description=status,
                total=counts.total or None,
                completed=counts.completed + counts.failed,
                note=note,
            )
            return
        now = time.monotonic()
        if status != self._printed_status or now - self._printed_at >= PLAIN_SECONDS:
            self._printed_status, self._printed_at = status, now
            line = f"{batch.id} {status} {counts.completed + counts.failed}/{counts.total}"
            self._console.print(f"{line}, {note}" if note else line)


def _notes(batch: Batch, progress: Progress | None) -> Iterable[str]:
    if batch.counts.failed:
        yield f"{batch.counts.failed:,} failed"
    if progress and not batch.has_ended:
        if shown := pace(progress):
            yield shown
        if progress.eta_seconds is not None:
            yield f"{duration(progress.eta_seconds)} left"
