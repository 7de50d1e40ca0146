"""Makes settings.md from the tables of settings in the code.

Run as `python docs/generate_settings.py` after a change of a setting.
"""

from __future__ import annotations

import importlib
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

HERE = Path(__file__).parent

# Module with a table of settings -> the heading of its section.
SECTIONS = {
    "trunkline.store.location": "Server and engine",
    "trunkline.logs": "Logs of server and engine",
    "trunkline.server.settings": "Server",
    "trunkline.engine.config": "Engine",
    "trunkline.server.client.settings": "Shell client",
}

HEAD = """\
# Settings

<!-- Made by docs/generate_settings.py from the code; a test compares the two. -->

Every setting is an environment variable; a command's `--help` says which of them it also takes as
flags (`TRUNKLINE_PAGE_SIZE` is `--page-size`). A flag wins over the environment, the environment
over the default. A malformed value stops the program with one line that says what was given and
what is allowed. Units are in the names and in the descriptions.

A variable that stands in two sections is read by both parts.
"""

TABLE_HEAD = """\
| variable | default | values | meaning |
|---|---|---|---|
"""

SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def settings_page() -> str:
    """The text of settings.md."""
    sections = [HEAD]
    for module, heading in SECTIONS.items():
        rows = [
            _row(table, name, field)
            for table in _tables(module)
            for name, field in table.model_fields.items()
            # What a table inherits stands in the section of the table that it comes from.
            if name in table.__annotations__
        ]
        sections.append(f"## {heading}\n\n{TABLE_HEAD}{''.join(rows)}")
    return "\n".join(sections)


def _tables(module: str) -> list[type[BaseSettings]]:
    return [
        found
        for found in vars(importlib.import_module(module)).values()
        if isinstance(found, type)
        and issubclass(found, BaseSettings)
        and found.__module__ == module
    ]


def _row(table: type[BaseSettings], name: str, field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"{table.__name__}.{name} has no description")
    variable = f"{table.model_config['env_prefix']}{name}".upper()
    cells = (f"`{variable}`", _default(field), _values(field), field.description)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "made by the process"
    if field.default is None or field.default == "":
        return "none"
    value = field.default.value if isinstance(field.default, StrEnum) else field.default
    return f"`{value}`"


def _values(field: FieldInfo) -> str:
    kinds = get_args(field.annotation) or (field.annotation,)
    named = " or ".join(_kind(kind) for kind in kinds if kind is not NoneType)
    bounds = [f"{sign} {getattr(m, kind.__name__.lower())}" for kind, sign, m in _bounds(field)]
    return ", ".join([named, *bounds])


def _kind(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(f"`{member.value}`" for member in kind)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    return names[kind]


def _bounds(field: FieldInfo) -> list[tuple[type, str, Any]]:
    return [
        (kind, sign, constraint)
        for constraint in field.metadata
        for kind, sign in SIGNS.items()
        if isinstance(constraint, kind)
    ]


if __name__ == "__main__":
    (HERE / "settings.md").write_text(settings_page(), encoding="utf-8")
