"""What can go wrong in the store.

StoreError
├── NotFound            no such object
├── UnknownCursor       the `after` of a list names no object
├── IllegalTransition   the batch's status does not allow it
├── IdempotencyConflict the key came with another request before
├── LeaseLost           somebody else holds the batch now
└── InUse               the file is the input of a batch that is not through
"""

from __future__ import annotations

from trunkline.store.states import BatchStatus


class StoreError(Exception):
    """The root of the store's errors."""


class NotFound(StoreError):  # noqa: N818  # these read as what they say: `except NotFound`
    def __init__(self, kind: str, identity: str) -> None:
        super().__init__(f"no {kind} with id {identity!r}")
        self.kind = kind
        self.id = identity


class UnknownCursor(StoreError):  # noqa: N818
    def __init__(self, cursor: str) -> None:
        super().__init__(f"the cursor {cursor!r} names no object")
        self.cursor = cursor


class IllegalTransition(StoreError):  # noqa: N818
    """What was asked for, in one word: "cancel", "pause"."""

    def __init__(self, batch_id: str, status: BatchStatus, action: str) -> None:
        super().__init__(f"cannot {action} batch {batch_id}, which is {status}")
        self.batch_id = batch_id
        self.status = status
        self.action = action


class IdempotencyConflict(StoreError):  # noqa: N818
    def __init__(self, key: str) -> None:
        super().__init__(f"the idempotency key {key!r} was used with another request")
        self.key = key


class LeaseLost(StoreError):  # noqa: N818
    def __init__(self, batch_id: str) -> None:
        super().__init__(f"the lease of batch {batch_id} is held by somebody else")
        self.batch_id = batch_id


class InUse(StoreError):  # noqa: N818
    def __init__(self, file_id: str, batch_id: str) -> None:
        super().__init__(f"file {file_id} is the input of batch {batch_id}, which is not through")
        self.file_id = file_id
        self.batch_id = batch_id
