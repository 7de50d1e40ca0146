"""Secrets are cut out of text before it leaves the process.

The last line of defence: no code logs a secret on purpose, but exceptions quote their arguments
and libraries log what they send.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"

# A secret that is shorter would be found in innocent words.
MIN_SECRET_CHARS = 4
# The value of a variable is taken for a secret on the word of its name.
MIN_VARIABLE_CHARS = 8

_SECRET_VARIABLE = re.compile(r"(?:PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY)$")
_URL_PASSWORD = re.compile(r"://[^\s:/@]{0,256}:(.+)@")

# In quotes, in the escaped quotes of JSON within a string, or up to whatever ends a bare word.
_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\\"(?:(?!\\").)*\\"|[^\s,;)\]}&]+)"""

# What may come between a name and its value: closing quotes, a sign, opening quotes.
_QUOTES = r"""['"\\]{0,4}"""
_SIGN = rf"{_QUOTES}\s{{0,4}}[:=,]\s{{0,4}}"

# Repetitions that could overlap with a pattern's own beginning are bounded, so that a long text
# takes time in proportion to its length.
_RULES = (
    # Headers, whether printed as lines, dicts, or the byte pairs of ASGI.
    (
        re.compile(
            rf"(authorization{_SIGN}b?{_QUOTES}(?:[a-z]{{1,20}}\s{{1,4}})?)"
            r"[^\s'\",;)\]}\\]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer\s{1,4})[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{MASK}"),
    # Fields, variables and parameters whose name says it.
    (
        re.compile(
            r"((?:password|passwd|passphrase|secret|api[-_]?key|credential)\w{0,40}"
            rf"{_QUOTES}\s{{0,4}}[:=]\s{{0,4}}b?){_VALUE}",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    # The password in a URL; but not the port in one that has an @ further on.
    (re.compile(r"(://[^\s:/@]{0,256}:)(?!\d{1,5}(?:[/?#\s]|$))\S{1,256}@"), rf"\1{MASK}@"),
    # Keys and secrets that show what they are: of this server, of OpenAI, of webhooks.
    (re.compile(r"\b(tl-)[\w-]{6,}"), rf"\1{MASK}"),
    (re.compile(r"\b(sk-)[\w-]{20,}"), rf"\1{MASK}"),
    (re.compile(r"\b(whsec_)[\w+/=-]+"), rf"\1{MASK}"),
)

# Without one of these in it, a text meets no rule; most texts have none.
_TRIGGER = re.compile(
    r"authorization|bearer|passw|passphrase|secret|api[-_]?key|credential|://|tl-|sk-|whsec_",
    re.IGNORECASE,
)


def secrets_of(environment: Mapping[str, str]) -> Iterator[str]:
    """Secrets that a process has been given by its environment, as names and URLs show."""
    for name, value in environment.items():
        if _SECRET_VARIABLE.search(name.upper()) and len(value) >= MIN_VARIABLE_CHARS:
            yield value
        if name.upper().endswith("_URL") and (found := _URL_PASSWORD.search(value)):
            yield from {found[1], unquote(found[1])}


class Redactor:
    """Replaces what looks like a secret, and what is known to be one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Make a redactor that also knows `secrets`, as they are and quoted as in a URL."""
        known = {secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS}
        known |= {quote(secret, safe="") for secret in known}
        # Of two that begin alike, the longer one is looked for first.
        self._known = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))))
        self._knows_any = bool(known)

    def text(self, text: str) -> str:
        """`text` without its secrets."""
        if self._knows_any:
            text = self._known.sub(MASK, text)
        if _TRIGGER.search(text) is None:
            return text
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        return text

    def value(self, value: Any) -> Any:
        """`value` as JSON can hold it, without the secrets of its texts; numbers stay numbers."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, dict):
            return {self.text(str(key)): self._member(key, each) for key, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(each) for each in value]
        return self.text(str(value))

    def _member(self, key: Any, value: Any) -> Any:
        """The value of a mapping's key, which may say that it is a secret."""
        if isinstance(value, str):
            shown = f"{key}: "
            return self.text(f"{shown}{value}").removeprefix(shown) if value else value
        return self.value(value)
