"""What a chat template knows, read from its source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from jinja2 import Environment, TemplateSyntaxError


@dataclass(frozen=True)
class TemplateNames:
    """The words of a Jinja template.

    ``variables`` are the names in its code, but for those of attributes and keywords of calls;
    ``strings`` the string literals there, without quotes.
    """

    variables: frozenset[str]
    strings: frozenset[str]


@lru_cache(maxsize=8)
def template_names(template: str) -> TemplateNames:
    """The words of `template`; none, when it is malformed, which rendering it will say."""
    variables, strings = set(), set()
    before = ""
    try:
        for _, kind, text in Environment(autoescape=False).lex(template):
            if kind == "name" and before != ".":
                variables.add(text)
            elif kind == "string":
                strings.add(text[1:-1])
            if kind != "whitespace":
                before = text
    except TemplateSyntaxError:
        return TemplateNames(frozenset(), frozenset())
    return TemplateNames(frozenset(variables), frozenset(strings))
