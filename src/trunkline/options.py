"""Command line options made from a table of settings, so that a setting is described once.

A setting comes from its flag, else from `TRUNKLINE_<NAME>`, else from its default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args

import typer
from pydantic import ValidationError
from pydantic_settings import BaseSettings

Settings = TypeVar("Settings", bound=BaseSettings)

# A configuration that cannot work: whoever supervises the process must not start it again.
EXIT_BAD_CONFIG = 2


class ConfigError(Exception):
    """A setting is malformed, or what it names is not there. The message is one line."""


def resolve(table: type[Settings], **given: Any) -> Settings:
    """The settings from `given` (None = not given), the environment and the defaults.

    Raises:
        ConfigError: a value is malformed; names its source and what is allowed.
    """
    try:
        return table(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]).lower()
        is_flag = given.get(name) is not None
        source = f"--{name.replace('_', '-')}" if is_flag else f"TRUNKLINE_{name.upper()}"
        raise ConfigError(f"{source} is {first['input']!r}: {first['msg']}") from None


def with_options(
    table: type[BaseSettings], *names: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the settings `names` of `table` as options; it gets them as its `config`.

    Other settings of the table still come from the environment. A malformed one ends the command
    with one line on stderr.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        options = [_option(table, name) for name in names]
        parameters = [p for p in own.values() if p.name != "config"] + options

        @wraps(command)
        def wrapper(**given: Any) -> None:
            settings = {name: given.pop(name) for name in names}
            try:
                command(config=resolve(table, **settings), **given)
            except ConfigError as error:
                typer.echo(f"trunkline: {error}", err=True)
                raise typer.Exit(EXIT_BAD_CONFIG) from None

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _option(table: type[BaseSettings], name: str) -> inspect.Parameter:
    field = table.model_fields[name]
    kinds = [k for k in (get_args(field.annotation) or (field.annotation,)) if k is not type(None)]
    kind: Any = kinds[0]
    default = field.get_default(call_default_factory=False)
    shown = default.value if isinstance(default, StrEnum) else default
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=field.description,
        show_default=False if shown in {None, ""} else str(shown),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )
