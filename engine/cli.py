"""The commands that need the engine: `engine`, `run`, `plan`."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from trunkline import logs, tracing
from trunkline.engine.config import EngineConfig
from trunkline.engine.simulation.hardware import HARDWARE, MODEL_SHAPES
from trunkline.engine.simulation.report import print_simulations
from trunkline.engine.simulation.simulate import ALL_SETTINGS, FCFS_LRU, PLANNED, Setting
from trunkline.engine.simulation.workloads import WORKLOADS, make_workload
from trunkline.logs import LogSettings
from trunkline.options import ConfigError, resolve, with_options
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
    "kv_cache_dtype",
    "max_batch_tokens",
    "cuda_graph_rows",
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
    blob_url: Annotated[str | None, typer.Option(help="s3://BUCKET/PREFIX.")] = None,
    parent_pid: Annotated[
        int | None, typer.Option(hidden=True, help="Stop when this process is gone.")
    ] = None,
) -> None:
    """Answer the batches of a store, until stopped."""
    # torch takes seconds to import, which `--help` and a misspelt option should not.
    from trunkline.engine.service import serve  # noqa: PLC0415

    log = resolve(LogSettings)
    logs.configure("engine", log.log_level, log.log_format)
    tracing.configure("engine")
    location = resolve(
        StoreLocation, data_dir=data_dir, database_url=database_url, blob_url=blob_url
    )
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
@with_options(EngineConfig, "scheduler", "prefix_sharing", "order", "grouping", "max_batch_tokens")
def simulate(
    config: EngineConfig,
    workload: Annotated[str, typer.Option(help=f"One of {', '.join(WORKLOADS)}.")],
    hardware: Annotated[str, typer.Option(help=f"One of {', '.join(HARDWARE)}.")],
    model_shape: Annotated[
        str, typer.Option(help=f"One of {', '.join(MODEL_SHAPES)}.")
    ] = "llama-3.1-8b",
    requests: Annotated[int, typer.Option(min=1, help="How many requests.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the workload.")] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="All settings that are worth comparing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line per run.")] = False,
) -> None:
    """Planner and scheduler on paper hardware: how long would it take?"""
    setting = Setting(config.scheduler, config.prefix_sharing, config.order, config.grouping)
    items = make_workload(_known("workload", workload, WORKLOADS), requests, seed)
    print_simulations(
        items,
        HARDWARE[_known("hardware", hardware, HARDWARE)],
        MODEL_SHAPES[_known("model-shape", model_shape, MODEL_SHAPES)],
        ALL_SETTINGS if compare else (setting,),
        config.max_batch_tokens,
        as_json=as_json,
    )


def _known(option: str, name: str, table: Mapping[str, object]) -> str:
    """`name` as `table` spells it."""
    for known in table:
        if known.lower() == name.lower():
            return known
    raise ConfigError(f"--{option} is {name!r}; allowed are {', '.join(table)}")


@app.command()
@with_options(EngineConfig, "model", "served_model_name", "cache_dir", "page_size")
def plan(
    config: EngineConfig,
    input_path: Annotated[Path, typer.Argument(metavar="IN.JSONL", help="Batch file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the prefix tree as an icicle plot, PNG.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help=f"How long it would take on {', '.join(HARDWARE)}.")
    ] = None,
    model_shape: Annotated[
        str, typer.Option(help=f"With --hardware: one of {', '.join(MODEL_SHAPES)}.")
    ] = "llama-3.1-8b",
) -> None:
    """What prefix sharing will save on a batch file, before anything runs."""
    from trunkline.engine.icicle import draw_icicle  # noqa: PLC0415  # see `engine`
    from trunkline.engine.offline import OfflineError, plan_file  # noqa: PLC0415

    try:
        planned = plan_file(config, input_path)
    except OfflineError as error:
        typer.echo(f"trunkline: {error}", err=True)
        raise typer.Exit(1) from None
    savings = planned.savings
    typer.echo(json.dumps(savings.as_json(), indent=2) if as_json else savings.summary())
    if picture is not None:
        title = (
            f"{savings.prompts:,} prompts, {savings.logical_tokens:,} tokens, "
            f"{savings.saved_share:.1%} saved"
        )
        draw_icicle(planned.tree, picture, title)
    if hardware is not None:
        print_simulations(
            planned.items,
            HARDWARE[_known("hardware", hardware, HARDWARE)],
            MODEL_SHAPES[_known("model-shape", model_shape, MODEL_SHAPES)],
            (PLANNED, FCFS_LRU),
            None,
            as_json=as_json,
        )
