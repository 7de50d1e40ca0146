"""Names of answers and of what is in them: the same again when a request is run again."""

from __future__ import annotations

import hashlib

from trunkline.engine.request import Line

_DIGEST_BYTES = 12


def answer_id(prefix: str, line: Line) -> str:
    """Name of the answer to a line, `chatcmpl-…`."""
    return f"{prefix}-{line.batch_id}-{line.line}"


def part_id(prefix: str, line: Line, *numbers: int) -> str:
    """Name of a part of the answer, `call_…`.

    Args:
        numbers: where it is in the answer.
    """
    source = ":".join(map(str, (line.batch_id, line.line, prefix, *numbers)))
    digest = hashlib.blake2b(source.encode(), digest_size=_DIGEST_BYTES)
    return f"{prefix}_{digest.hexdigest()}"
