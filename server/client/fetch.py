"""Results into files: whole ones of ended batches, and what is there by now of running ones.

A whole file is written under a temporary name and renamed. A partial one grows: how far it is lies
beside it, in OUT.partial, so that the next run adds what is new; if a run is cut off, the next one
takes away what it had half written.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trunkline.server.client.api import Api
from trunkline.server.client.errors import BatchNotAnswered, Unreachable, WrongUse
from trunkline.server.client.replies import Batch

STDOUT = "-"
# Attempts at a download, and the pause between them.
MAX_ATTEMPTS = 4
PAUSE_SECONDS = 1.0


class Destinations:
    """Where results go; what cannot work is refused before anything is asked for."""

    def __init__(
        self, output: str, errors: str | None, *, force: bool, is_partial: bool = False
    ) -> None:
        """`-` is standard output.

        Raises:
            WrongUse: a file is there already, its folder is not, or both are the same.
        """
        self.output = None if output == STDOUT else Path(output).resolve()
        self.errors = None if errors in {None, STDOUT} else Path(errors or "").resolve()
        self.has_errors = errors is not None
        self.force = force
        if errors is not None and self.output == self.errors:
            raise WrongUse(
                f"-o and --errors are both {output}; answers and failed lines need a file each"
            )
        for path in (self.output, self.errors):
            if path is not None:
                self._check(path, is_partial=is_partial)

    def _check(self, path: Path, *, is_partial: bool) -> None:
        if path.exists() and not path.is_file():
            raise WrongUse(f"{path} is not a regular file; give a file, or - for standard output")
        if not path.parent.is_dir():
            raise WrongUse(f"{path} cannot be written: there is no folder {path.parent}")
        if path.exists() and not self.force and not (is_partial and _state_path(path).exists()):
            raise WrongUse(f"{path} exists already; give another name, or --force to replace it")


def fetch_results(api: Api, batch: Batch, to: Destinations) -> None:
    """The output file of an ended batch, and its error file if it is wanted.

    Raises:
        BatchNotAnswered: it has no output; nothing is written but the errors that are wanted.
    """
    with ExitStack() as renames:
        if to.has_errors:
            # Nothing failed: then the file is there, and empty.
            _download(api, batch.error_file_id, to.errors, renames, force=to.force)
        if batch.output_file_id is not None:
            _download(api, batch.output_file_id, to.output, renames, force=to.force)
    if batch.output_file_id is None:
        raise BatchNotAnswered(_why_no_output(batch, to))


def _why_no_output(batch: Batch, to: Destinations) -> str:
    if not batch.has_ended:
        counts = batch.counts
        return (
            f"{batch.id} has not ended ({batch.status}, {counts.completed + counts.failed} of "
            f"{counts.total} lines done); wait with `trunkline status {batch.id} --watch`, or "
            "fetch what is there with --partial"
        )
    if batch.status == "failed":
        return f"{batch.id} failed and has no results; `trunkline status {batch.id}` says why"
    where = "--errors FILE fetches the reasons"
    if to.has_errors:
        where = f"the reasons are in {to.errors or 'the lines above'}"
    return f"{batch.id} is {batch.status} without a single answer; {where}"


def _download(
    api: Api, file_id: str | None, path: Path | None, renames: ExitStack, *, force: bool
) -> None:
    """Bring a file; it gets its name when `renames` closes without an error."""
    if path is None:
        if file_id is not None:
            with api.file_content(file_id) as chunks:
                _copy(chunks, sys.stdout.buffer)
        return
    temporary = _temporary(path)

    def finish(kind: object, *_: object) -> None:
        try:
            if kind is None:
                if path.exists() and not force:
                    raise WrongUse(f"{path} has come into being meanwhile; it was left as it is")
                temporary.replace(path)
                # What was fetched of it before is replaced too.
                _state_path(path).unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)

    renames.push(finish)
    with temporary.open("wb") as file:
        if file_id is not None:
            _try_again(lambda: _fill(file, lambda: api.file_content(file_id)))
        file.flush()
        os.fsync(file.fileno())


def _fill(file: BinaryIO, opened: Callable[[], AbstractContextManager[Iterator[bytes]]]) -> None:
    file.seek(0)
    file.truncate()
    with opened() as chunks:
        _copy(chunks, file)


def _try_again(download: Callable[[], None]) -> None:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return download()
        except Unreachable:
            if attempt == MAX_ATTEMPTS:
                raise
            time.sleep(PAUSE_SECONDS * attempt)
    return None


def _copy(chunks: Iterator[bytes], file: BinaryIO) -> None:
    file.writelines(chunks)
    file.flush()


@dataclass(frozen=True, slots=True)
class PartialResult:
    """What a partial fetch has brought."""

    num_new_lines: int
    is_complete: bool


class PartialState(BaseModel):
    """How far a partial file is; lies beside it as JSON."""

    model_config = ConfigDict(frozen=True)

    batch_id: str
    kind: str
    next_offset: int = Field(ge=0)
    num_bytes: int = Field(ge=0)  # of the file; what comes behind was half written


def fetch_partial(api: Api, batch_id: str, to: Destinations) -> PartialResult:
    """What is new of the results of a batch that may still run, added to the files."""
    output = _append(api, batch_id, "output", to.output, force=to.force)
    if not to.has_errors:
        return output
    errors = _append(api, batch_id, "errors", to.errors, force=to.force)
    return PartialResult(
        output.num_new_lines + errors.num_new_lines, output.is_complete and errors.is_complete
    )


def _append(api: Api, batch_id: str, kind: str, path: Path | None, *, force: bool) -> PartialResult:
    start = PartialState(batch_id=batch_id, kind=kind, next_offset=0, num_bytes=0)
    if path is None:
        return _append_from(api, start, sys.stdout.buffer)[1]
    if force or not path.exists():
        return _start_file(api, start, path)
    state = _read_state(path, batch_id, kind)
    with path.open("ab") as file:
        file.truncate(state.num_bytes)
        try:
            next_offset, result = _append_from(api, state, file)
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                file.truncate(state.num_bytes)
            raise
        num_bytes = file.seek(0, os.SEEK_END)
    changed = {"next_offset": next_offset, "num_bytes": num_bytes}
    _write_state(path, state.model_copy(update=changed))
    return result


def _start_file(api: Api, start: PartialState, path: Path) -> PartialResult:
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            next_offset, result = _append_from(api, start, file)
            os.fsync(file.fileno())
            num_bytes = file.tell()
        # What it says of an older file must not be taken for the new one's.
        _state_path(path).unlink(missing_ok=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    changed = {"next_offset": next_offset, "num_bytes": num_bytes}
    _write_state(path, start.model_copy(update=changed))
    return result


def _append_from(api: Api, state: PartialState, file: BinaryIO) -> tuple[int, PartialResult]:
    num_lines = 0
    with api.results(state.batch_id, state.kind, state.next_offset) as (
        chunks,
        last,
        is_incomplete,
    ):
        for chunk in chunks:
            file.write(chunk)
            num_lines += chunk.count(b"\n")
    file.flush()
    return last, PartialResult(num_lines, not is_incomplete)


def _state_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _read_state(path: Path, batch_id: str, kind: str) -> PartialState:
    """How far the file is.

    Raises:
        WrongUse: it belongs to something else, or somebody has changed it.
    """
    state_path = _state_path(path)
    try:
        state = PartialState.model_validate_json(state_path.read_bytes())
    except ValidationError:
        raise WrongUse(
            f"{state_path} does not say how far {path} is; --force fetches all anew"
        ) from None
    if (state.batch_id, state.kind) != (batch_id, kind):
        raise WrongUse(
            f"{path} holds the {state.kind} of {state.batch_id}; give another name, or --force to "
            "replace it"
        )
    if path.stat().st_size < state.num_bytes:
        raise WrongUse(f"{path} has become shorter since it was fetched; --force fetches all anew")
    return state


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _write_state(path: Path, state: PartialState) -> None:
    state_path = _state_path(path)
    temporary = _temporary(state_path)
    temporary.write_text(state.model_dump_json() + "\n")
    temporary.replace(state_path)
