"""The commands for whoever runs the installation: `keys`, `projects`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trunkline.options import ConfigError, with_options
from trunkline.server.opening import opened
from trunkline.store.errors import NotFound
from trunkline.store.location import StoreLocation
from trunkline.store.projects import ApiKeys, Projects
from trunkline.store.records import ProjectLimits

app = typer.Typer(no_args_is_help=True)
keys = typer.Typer(no_args_is_help=True, help="API keys.")
projects = typer.Typer(no_args_is_help=True, help="Projects and their limits.")
app.add_typer(keys, name="keys")
app.add_typer(projects, name="projects")

LOCATION_OPTIONS = ("data_dir", "database_url", "blob_url")

# For a limit: what is not a number takes it away.
NO_LIMIT = "none"


@keys.command("create")
@with_options(StoreLocation, *LOCATION_OPTIONS)
def create_key(
    config: StoreLocation,
    project: Annotated[
        str, typer.Option(help="Name of the project; it is made if there is none.")
    ] = "default",
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
) -> None:
    """Make a key and print it. It is shown this once; only its hash is kept."""
    now = int(time.time())
    with opened(config) as database:
        try:
            owner = Projects(database).ensure(project, now)
        except ValueError as error:
            raise ConfigError(f"--project: {error}") from None
        record, text = ApiKeys(database).create(owner.id, name, now)
    # The key alone on stdout, so that a script can take it.
    typer.echo(
        f"key {record.id} of project {owner.name}; keep it, it is not shown again:", err=True
    )
    typer.echo(text)


@keys.command("list")
@with_options(StoreLocation, *LOCATION_OPTIONS)
def list_keys(config: StoreLocation) -> None:
    """All keys, without their text."""
    with opened(config) as database:
        names = {project.id: project.name for project in Projects(database).list()}
        records = ApiKeys(database).list()
    table = Table("id", "project", "name", "ends with", "created", "last used", "revoked")
    for key in records:
        times = (key.created_at, key.last_used_at, key.revoked_at)
        table.add_row(
            key.id, names[key.project_id], key.name, f"…{key.hint}", *(map(_moment, times))
        )
    Console().print(table)


@keys.command("revoke")
@with_options(StoreLocation, *LOCATION_OPTIONS)
def revoke_key(config: StoreLocation, key_id: Annotated[str, typer.Argument()]) -> None:
    """Let a key open nothing any more, a second from now and for good."""
    with opened(config) as database:
        try:
            key = ApiKeys(database).revoke(key_id, int(time.time()))
        except NotFound:
            raise ConfigError(f"there is no key {key_id!r}; see `trunkline keys list`") from None
    typer.echo(f"key {key.id} (…{key.hint}) is revoked")


@projects.command("list")
@with_options(StoreLocation, *LOCATION_OPTIONS)
def list_projects(config: StoreLocation) -> None:
    """All projects and their limits."""
    with opened(config) as database:
        records = Projects(database).list()
    table = Table("name", "id", "created", "queued requests", "queued tokens", "requests/min")
    for project in records:
        limits = project.limits
        table.add_row(
            project.name,
            project.id,
            _moment(project.created_at),
            *(
                "no limit" if limit is None else f"{limit:,}"
                for limit in (
                    limits.max_queued_requests,
                    limits.max_queued_tokens,
                    limits.max_requests_per_minute,
                )
            ),
        )
    Console().print(table)


_LIMIT_HELP = f"A number, or '{NO_LIMIT}'. Stays as it is unless given."


@projects.command("update")
@with_options(StoreLocation, *LOCATION_OPTIONS)
def update_project(
    config: StoreLocation,
    name: Annotated[str, typer.Argument(help="Of the project; it is made if there is none.")],
    max_queued_requests: Annotated[
        str | None, typer.Option(help=f"Lines that may wait at once. {_LIMIT_HELP}")
    ] = None,
    max_queued_tokens: Annotated[
        str | None,
        typer.Option(help=f"Tokens of prompts that may wait, as estimated. {_LIMIT_HELP}"),
    ] = None,
    max_requests_per_minute: Annotated[
        str | None, typer.Option(help=f"HTTP requests, for each server. {_LIMIT_HELP}")
    ] = None,
) -> None:
    """Change the limits of a project."""
    with opened(config) as database:
        try:
            limits = Projects(database).ensure(name, int(time.time())).limits
        except ValueError as error:
            raise ConfigError(str(error)) from None
        limits = ProjectLimits(
            _limit("--max-queued-requests", max_queued_requests, limits.max_queued_requests),
            _limit("--max-queued-tokens", max_queued_tokens, limits.max_queued_tokens),
            _limit(
                "--max-requests-per-minute",
                max_requests_per_minute,
                limits.max_requests_per_minute,
            ),
        )
        Projects(database).set_limits(name, limits)
    typer.echo(f"project {name} is up to date")


def _limit(option: str, given: str | None, current: int | None) -> int | None:
    if given is None:
        return current
    if given == NO_LIMIT:
        return None
    # PostgreSQL's integers; nobody needs more requests than that.
    if not given.isdecimal() or int(given) > 2**31 - 1:
        raise ConfigError(
            f"{option} is {given!r}; it must be a whole number up to {2**31 - 1}, or '{NO_LIMIT}'"
        )
    return int(given)


def _moment(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
