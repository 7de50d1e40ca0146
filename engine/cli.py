"""The commands that need the engine: `engine`, `run`, `plan`."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import Annotated

import typer

from trunkline.engine.config import EngineConfig
from trunkline.options import resolve, with_options
from trunkline.store.location import StoreLocation

app = typer.Typer(no_args_is_help=True)

MODEL_OPTIONS = (
    "model",
    "served_model_name",
    "cache_dir",
    "device",
    "dtype",
    "load_format",
    "max_model_tokens",
    "page_size",
    "kv_cache_bytes",
    "max_batch_tokens",
    "scheduler",
    "prefix_sharing",
    "order",
    "grouping",
    "threads",
)
SERVICE_OPTIONS = ("engine_name", "lease_seconds", "poll_seconds", "commit_seconds")


@app.command()
@with_options(EngineConfig, *MODEL_OPTIONS, *SERVICE_OPTIONS, "max_held_requests")
def engine(
    config: EngineConfig,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the file bytes and of the SQLite database.")
    ] = None,
    database_url: Annotated[str | None, typer.Option(help="sqlite:/// or postgresql://.")] = None,
    parent_pid: Annotated[
        int | None, typer.Option(hidden=True, help="Stop when this process is gone.")
    ] = None,
) -> None:
    """Answer the batches of a store, until stopped."""
    # torch takes seconds to import, which `--help` and a misspelt option should not.
    from trunkline.engine.service import serve  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(asctime)s engine %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    location = resolve(StoreLocation, data_dir=data_dir, database_url=database_url)
    serve(config, location, parent_pid)


@app.command()
@with_options(EngineConfig, *MODEL_OPTIONS)
def run(
    config: EngineConfig,
    input_path: Annotated[Path, typer.Option("-i", "--input", help="Batch file, JSONL.")],
    output_path: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")],
    errors_path: Annotated[
        Path | None,
        typer.Option("--errors", help="Where failed lines go; OUTPUT.errors.jsonl unless given."),
    ] = None,
    stats_path: Annotated[
        Path | None, typer.Option("--stats", help="Write figures of the run here, JSON.")
    ] = None,
) -> None:
    """Answer a batch file without a server; run again, it does only what is missing."""
    from trunkline.engine.offline import OfflineError, run_file  # noqa: PLC0415  # see `engine`

    errors = errors_path or output_path.with_name(f"{output_path.name}.errors.jsonl")
    try:
        stats = run_file(config, input_path, output_path, errors)
    except OfflineError as error:
        typer.echo(f"trunkline: {error}", err=True)
        raise typer.Exit(1) from None
    if stats_path is not None:
        stats_path.write_text(json.dumps(stats.as_json(), indent=2) + "\n")
    typer.echo(stats.summary(), err=True)
    if stats.interrupted:
        raise typer.Exit(128 + signal.SIGINT)
    if stats.failed:
        typer.echo(f"trunkline: {stats.failed} requests failed; they are in {errors}", err=True)
        raise typer.Exit(1)


@app.command()
@with_options(EngineConfig, "model", "served_model_name", "cache_dir", "page_size")
def plan(
    config: EngineConfig,
    input_path: Annotated[Path, typer.Argument(metavar="IN.JSONL", help="Batch file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What prefix sharing will save on a batch file, before anything runs."""
    from trunkline.engine.offline import OfflineError, plan_file  # noqa: PLC0415  # see `engine`

    try:
        savings = plan_file(config, input_path)
    except OfflineError as error:
        typer.echo(f"trunkline: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(savings.as_json(), indent=2) if as_json else savings.summary())
