"""The command `trunkline`: finds out which part a command belongs to and runs that part's own CLI.

A part is imported only when one of its commands is used, so the server's commands work where torch
is not installed.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import trunkline

# Command -> the module whose Typer app has it, in the order of `trunkline --help`.
COMMANDS = {
    "serve": "trunkline.server.cli",
    "server": "trunkline.server.cli",
    "engine": "trunkline.engine.cli",
    "submit": "trunkline.server.client.commands",
    "status": "trunkline.server.client.commands",
    "fetch": "trunkline.server.client.commands",
    "cancel": "trunkline.server.client.commands",
    "pause": "trunkline.server.client.commands",
    "resume": "trunkline.server.client.commands",
    "retry": "trunkline.server.client.commands",
    "run": "trunkline.engine.cli",
    "plan": "trunkline.engine.cli",
    "simulate": "trunkline.engine.cli",
    "demo": "trunkline.server.cli",
    "keys": "trunkline.server.admin_cli",
    "projects": "trunkline.server.admin_cli",
    "db": "trunkline.server.cli",
}


class PartsGroup(TyperGroup):
    """The commands of several Typer apps under one name."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # the interface has it
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        part: Any = get_command(importlib.import_module(COMMANDS[cmd_name]).app)
        return part.get_command(ctx, cmd_name)


app = typer.Typer(cls=PartsGroup, context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trunkline {trunkline.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """A self-hosted, OpenAI-compatible batch API server with its own inference engine."""


def main() -> None:
    app(prog_name="trunkline")


if __name__ == "__main__":
    main()
