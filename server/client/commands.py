"""The commands for the shell: `submit`, `status`, `fetch`, `cancel`, `retry`, `pause`, `resume`.

What does the work is imported when it is needed: `trunkline --help` reads this module too, and
needs neither an HTTP client nor tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from trunkline.options import with_options
from trunkline.server.client.errors import EXIT_INTERRUPTED, ClientError, WrongUse
from trunkline.server.client.settings import ClientSettings
from trunkline.store.endpoints import ENDPOINTS

app = typer.Typer(no_args_is_help=True)

SERVER_OPTIONS = ("base_url", "api_key")

AUTO = "auto"
ENDPOINT_HELP = f"All lines ask for this one; `{AUTO}`: the one of the first line."
EXIT_HELP = (
    "Exit status: 0 when all that was asked for has happened; 1 when a batch ended with lines "
    "that have no answer; 2 for a wrong option, file or batch file; 3 when the server cannot be "
    "reached or refuses; 130 after Ctrl-C."
)

BatchId = Annotated[str, typer.Argument(metavar="ID", help="Of the batch.")]
Output = typer.Option("-o", "--output", metavar="FILE", help="The answers; - is standard output.")
Errors = typer.Option(metavar="FILE", help="The lines that failed, with their reasons.")
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]


@contextmanager
def _reported(after_interrupt: str = "") -> Iterator[None]:
    """One line on stderr for whatever ends a command early."""
    try:
        yield
    except ClientError as error:
        _complain(str(error))
        raise typer.Exit(error.exit_status) from None
    except BrokenPipeError:
        raise  # whoever read standard output has enough; typer ends quietly
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _complain(f"{place}{error.strerror or error}")
        raise typer.Exit(WrongUse.exit_status) from None
    except KeyboardInterrupt:
        _complain(f"interrupted{after_interrupt}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _complain(message: str) -> None:
    # Parts of it come from a server, and must not command the terminal.
    line = "".join(c if c.isprintable() else " " for c in message)
    typer.echo(f"trunkline: {line}", err=True)


@app.command(epilog=EXIT_HELP)
@with_options(ClientSettings, *SERVER_OPTIONS)
def submit(
    config: ClientSettings,
    path: Annotated[Path, typer.Argument(metavar="IN.JSONL", help="Batch file.")],
    endpoint: Annotated[str, typer.Option(help=ENDPOINT_HELP)] = AUTO,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be given 16 times.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Higher goes first.", show_default="0")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Wait for the end of the batch.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Wait for the end and fetch the answers; needs -o.")
    ] = False,
    output: Annotated[str | None, Output] = None,
    errors: Annotated[str | None, Errors] = None,
    force: Force = False,
) -> None:
    """Check a batch file, upload it and create a batch; prints the batch's id.

    With --watch or --fetch, a batch in which any line has no answer ends the command with 1; what
    is there is fetched nevertheless. Files of more than 100 MB are sent in parts.
    """
    with _reported("; a batch whose id is above goes on"):
        from trunkline.server.client.actions import submit_batch  # noqa: PLC0415  # see above

        if endpoint != AUTO and endpoint not in ENDPOINTS:
            allowed = ", ".join((AUTO, *ENDPOINTS))
            raise WrongUse(f"--endpoint is {endpoint!r}; allowed are {allowed}")
        if fetch != (output is not None):
            raise WrongUse("--fetch and -o FILE need each other")
        if not fetch and (errors is not None or force):
            raise WrongUse("--errors and --force belong to --fetch -o FILE")
        submit_batch(
            config,
            path,
            None if endpoint == AUTO else endpoint,
            metadata or [],
            priority,
            is_watched=watch,
            output=output,
            errors=errors,
            force=force,
        )


@app.command(epilog=EXIT_HELP)
@with_options(ClientSettings, *SERVER_OPTIONS)
def status(
    config: ClientSettings,
    batch_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of a batch; else the recent ones.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the batch to its end; needs an ID.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The server's object.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Without ID: how many.")] = 20,
) -> None:
    """Recent batches, or one of them in detail.

    With --watch, a batch in which any line has no answer ends the command with 1.
    """
    with _reported(f"; `trunkline status {batch_id} --watch` goes on watching" if watch else ""):
        from trunkline.server.client.actions import show_list, show_one  # noqa: PLC0415

        if batch_id is not None:
            show_one(config, batch_id, is_watched=watch, as_json=as_json)
        elif watch:
            raise WrongUse("--watch needs the ID of a batch; `trunkline status` lists them")
        else:
            show_list(config, limit, as_json=as_json)


@app.command(epilog=EXIT_HELP)
@with_options(ClientSettings, *SERVER_OPTIONS)
def fetch(
    config: ClientSettings,
    batch_id: BatchId,
    output: Annotated[str, Output],
    errors: Annotated[str | None, Errors] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="What is there by now. Run again, it adds what is new; FILE.partial beside the "
            "file says how far it is.",
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Fetch the results of a batch that has ended; with --partial, of one that runs.

    Fails with 1 if the batch has not ended, or has no answer at all.
    """
    with _reported("; run the command again"):
        from trunkline.server.client.actions import fetch_batch  # noqa: PLC0415

        fetch_batch(config, batch_id, output, errors, is_partial=partial, force=force)


def _act(config: ClientSettings, batch_id: str, action: str) -> None:
    with _reported():
        from trunkline.server.client.actions import act  # noqa: PLC0415

        act(config, batch_id, action)


@app.command(epilog=EXIT_HELP)
@with_options(ClientSettings, *SERVER_OPTIONS)
def cancel(config: ClientSettings, batch_id: BatchId) -> None:
    """Let a batch end early. What is answered by then can be fetched."""
    _act(config, batch_id, "cancel")


@app.command(epilog=EXIT_HELP)
@with_options(ClientSettings, *SERVER_OPTIONS)
def pause(config: ClientSettings, batch_id: BatchId) -> None:
    """Let no engine work on a batch. Its window goes on."""
    _act(config, batch_id, "pause")


@app.command(epilog=EXIT_HELP)
@with_options(ClientSettings, *SERVER_OPTIONS)
def resume(config: ClientSettings, batch_id: BatchId) -> None:
    """Let engines work on a paused batch again."""
    _act(config, batch_id, "resume")


@app.command(epilog=EXIT_HELP)
@with_options(ClientSettings, *SERVER_OPTIONS)
def retry(config: ClientSettings, batch_id: BatchId) -> None:
    """Make a new batch of the lines that have no answer, and print its id."""
    with _reported():
        from trunkline.server.client.actions import retry_batch  # noqa: PLC0415

        retry_batch(config, batch_id)
