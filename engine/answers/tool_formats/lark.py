"""Parts of the grammars of calls, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from trunkline.engine.json_grammar import prepared_schema
from trunkline.engine.requests.tools import FunctionTool


def literal(text: str) -> str:
    """Text that has to be written just so."""
    return json.dumps(text)


def marker(text: str, vocabulary: Mapping[str, int]) -> str:
    """A marker: the token of that name, or its text where there is none."""
    token_id = vocabulary.get(text)
    return literal(text) if token_id is None else f"<[{token_id}]>"


def arguments_rules(tools: Sequence[FunctionTool]) -> list[str]:
    """The rules ``arguments_0``, ``arguments_1``, ...: an object after each tool's schema.

    What llguidance does not know in a schema is left out of account, unless the tool is strict.
    """
    rules = []
    for number, tool in enumerate(tools):
        options = {"x-guidance": {"lenient": not tool.strict}}
        schema = prepared_schema({"type": "object", **tool.parameters, **options})
        rules.append(f"arguments_{number}: %json {json.dumps(schema)}")
    return rules


def object_rules(tools: Sequence[FunctionTool], arguments_key: str) -> list[str]:
    """The rule ``object``: a call of one of the tools as a JSON object; and what it needs."""
    objects = []
    for number, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.name)}, "{arguments_key}": '
        objects.append(f"{literal(head)} arguments_{number} {literal('}')}")
    return [f"object: {' | '.join(objects)}", *arguments_rules(tools)]


def repeated(item: str, separator: str, *, parallel: bool) -> str:
    """One `item`, or several with `separator` between them."""
    return f"{item} ({separator} {item})*" if parallel else item


def grammar(rules: Sequence[str]) -> str:
    """The text of a grammar that begins with the rule ``start``."""
    return "\n".join(["%llguidance {}", *rules]) + "\n"
