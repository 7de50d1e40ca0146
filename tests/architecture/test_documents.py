"""The documents tell the truth where a machine can check it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trunkline.__main__ import COMMANDS, app

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|`|\$ )trunkline ([a-z]+)\b", re.MULTILINE)
CODE_PATH = re.compile(r"`((?:server|store|engine|kernels|migrations|tests|docker)/[\w./-]*\w)`")

# What users and scripts may depend on.
FIXED_COMMANDS = (
    *("serve", "server", "engine", "run", "plan", "simulate", "demo", "db", "keys", "projects"),
    *("submit", "status", "fetch", "cancel", "pause", "resume", "retry"),
)


def test_relative_links_resolve(documents: list[Path], root: Path) -> None:
    broken = [
        f"{document.relative_to(root)}: {target}"
        for document in documents
        for target in LINK.findall(_prose(document))
        if "://" not in target and not target.startswith("mailto:")
        if not _resolves(document, target)
    ]
    assert broken == []


def test_files_that_documents_name_exist(documents: list[Path], root: Path) -> None:
    missing = [
        f"{document.relative_to(root)}: {name}"
        for document in documents
        for name in CODE_PATH.findall(_prose(document))
        if not (root / name).exists()
    ]
    assert missing == []


def test_commands_that_documents_name_exist(documents: list[Path], root: Path) -> None:
    unknown = {
        f"{document.relative_to(root)}: trunkline {command}"
        for document in documents
        for command in COMMAND.findall(document.read_text(encoding="utf-8"))
        if command not in COMMANDS
    }
    assert unknown == set()


@pytest.mark.parametrize("command", FIXED_COMMANDS)
def test_command_is_listed_and_has_help(command: str) -> None:
    runner = CliRunner()
    overview = runner.invoke(app, ["--help"])
    assert overview.exit_code == 0, overview.output
    assert re.search(rf"^\W*{command}\b", overview.output, re.MULTILINE)
    own = runner.invoke(app, [command, "--help"])
    assert own.exit_code == 0, own.output


def _prose(document: Path) -> str:
    return CODE_BLOCK.sub("", document.read_text(encoding="utf-8"))


def _resolves(document: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = document.parent / path if path else document
    if not file.exists():
        return False
    return not anchor or anchor in {_anchor(heading) for heading in HEADING.findall(_prose(file))}


def _anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
