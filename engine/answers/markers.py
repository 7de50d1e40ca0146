"""Fixed strings that mark parts of an answer, looked for in text that arrives in parts."""

from __future__ import annotations

from collections.abc import Sequence


def find_first(text: str, markers: Sequence[str]) -> tuple[int, str] | None:
    """Where the first of `markers` begins in `text`, and which it is."""
    found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
    return min(found, default=None)


def num_open_chars(text: str, markers: Sequence[str]) -> int:
    """How many chars at the end of `text` may be the beginning of one of `markers`."""
    for start in range(max(len(text) - max(map(len, markers)) + 1, 0), len(text)):
        end = text[start:]
        if any(marker.startswith(end) for marker in markers):
            return len(end)
    return 0
