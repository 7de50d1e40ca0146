"""The statuses of a batch and the legal ways between them."""

from __future__ import annotations

from enum import StrEnum


class BatchStatus(StrEnum):
    """A batch's status, in the API's words."""

    VALIDATING = "validating"
    FAILED = "failed"  # the input file is not valid; nothing ran
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"  # every request is settled; the files are being written
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


# A batch whose window is over goes through finalizing, where its unfinished lines get their
# outcome; it ends as expired if there are any. One that is still to be validated is validated
# first, because its lines are not known before.
TRANSITIONS: dict[BatchStatus, frozenset[BatchStatus]] = {
    BatchStatus.VALIDATING: frozenset(
        {
            BatchStatus.FAILED,
            BatchStatus.IN_PROGRESS,
            BatchStatus.CANCELLING,
        }
    ),
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}


def sources(target: BatchStatus) -> list[BatchStatus]:
    """The statuses from which a batch may become `target`."""
    return [status for status, targets in TRANSITIONS.items() if target in targets]


def is_terminal(status: BatchStatus) -> bool:
    return not TRANSITIONS[status]


LIVE = tuple(status for status in BatchStatus if TRANSITIONS[status])
