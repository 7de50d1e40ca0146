"""JSON schemas in the form in which llguidance is to take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

# How JSON is written: on one line, with the spaces that Python's json.dumps writes, and so chat
# templates, and so most of what models have read. A model that may choose fills the rest of its
# output with blanks now and then, above all a small one.
JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_BY_FOUR = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"(?:[0-9]{{2}}{_BY_FOUR}|{_BY_FOUR}00)"
_DATE = f"(?:{_YEAR}-(?:(?:0[13-9]|1[0-2])-[0-9]{{2}}|02-(?:[01][0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
_TIME = "[0-9:]{6}[0-5]"
# What llguidance's own patterns of these formats leave open: 29 February in every year, the year 0,
# and leap seconds at any time of the day, which validators refuse.
_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}", "date-time": f"^{_DATE}.{_TIME}"}

_SCHEMA_KEYS = ("items", "additionalProperties", "then", "else", "contains")
_LIST_KEYS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAP_KEYS = ("properties", "patternProperties", "$defs", "definitions")


def prepared_schema(schema: Mapping[str, Any]) -> Schema:
    """`schema` with our options under "x-guidance", where it does not set them itself.

    Formats are narrowed to what validators take. It can stand in a grammar after `%json` too.
    """
    return {
        **_narrowed(schema),
        "x-guidance": {**JSON_OPTIONS, **schema.get("x-guidance", {})},
    }


def _narrowed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found: Schema = {}
    for key, value in schema.items():
        if key in _SCHEMA_KEYS:
            found[key] = _narrowed(value)
        elif key in _LIST_KEYS and isinstance(value, list):
            found[key] = [_narrowed(each) for each in value]
        elif key in _MAP_KEYS and isinstance(value, Mapping):
            found[key] = {name: _narrowed(each) for name, each in value.items()}
        else:
            found[key] = value
    form = schema.get("format")
    if isinstance(form, str) and form in _PATTERNS and isinstance(found.get("allOf", []), list):
        found["allOf"] = [*found.get("allOf", []), {"pattern": _PATTERNS[form]}]
    return found
