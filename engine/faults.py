"""What fails for one request ends that request, and not the engine with all the others.

Nothing here is expected to happen: whatever a request may hold has its own error. It is the last
line of defence against the request that nobody thought of.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from trunkline.engine.request import Line, Refusal, Request
from trunkline.engine.requests.errors import InternalError

logger = logging.getLogger(__name__)


def fault_of(line: Line, doing: str, error: Exception) -> Refusal:
    """Log an error that is nobody's but the engine's; what `line` gets for it.

    What the error says is left out of the log: it may quote the request.

    Args:
        doing: what failed, such as "reading the request".
    """
    logger.error(
        "line %d of %s: %s while %s\n%s",
        line.line,
        line.batch_id,
        type(error).__name__,
        doing,
        "".join(traceback.format_tb(error.__traceback__)),
    )
    return Refusal(line, InternalError(doing))


def admit_together(
    lines: Iterable[Line],
    num_together: int,
    admit: Callable[[list[Line]], Iterable[Request | Refusal]],
) -> Iterator[Request | Refusal]:
    """Admit `num_together` lines at once, in their order; one by one where that fails."""
    remaining = iter(lines)
    while chunk := list(islice(remaining, num_together)):
        try:
            admitted = list(admit(chunk))
        except Exception:  # each line by itself says which it is
            admitted = [_admitted_alone(line, admit) for line in chunk]
        yield from admitted


def _admitted_alone(
    line: Line, admit: Callable[[list[Line]], Iterable[Request | Refusal]]
) -> Request | Refusal:
    try:
        (admitted,) = admit([line])
    except Exception as error:  # see the module
        return fault_of(line, "reading the request", error)
    return admitted
