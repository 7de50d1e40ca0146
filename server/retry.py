"""A new batch of the lines that were not answered."""

from __future__ import annotations

from trunkline.server.errors import ApiError
from trunkline.server.scope import Scope
from trunkline.server.state import State
from trunkline.store.errors import IllegalTransition, NotFound
from trunkline.store.records import BatchRecord, Idempotency, NewBatch, NewFile
from trunkline.store.states import is_terminal


def retry_failed(
    state: State, scope: Scope, batch_id: str, idempotency: Idempotency | None
) -> BatchRecord:
    """Create a batch whose input file holds the failed lines of another one, as they were.

    Raises:
        NotFound: there is no such batch.
        IllegalTransition: the batch is not through.
        ApiError: no line has failed, or the input file is gone.
    """
    batch = scope.batches.get(batch_id)
    if not is_terminal(batch.status):
        raise IllegalTransition(batch_id, batch.status, "retry")
    now = state.now()
    filename = f"{batch_id}_retry.jsonl"
    with state.blobs.writer() as writer:
        try:
            source = state.blobs.open(scope.files.get(batch.input_file_id).blob_key)
        except (NotFound, FileNotFoundError):
            raise ApiError(
                400,
                f"The input file {batch.input_file_id} of this batch is gone; its lines cannot be "
                "tried again.",
                code="input_file_gone",
            ) from None
        with source:
            for offset, num_bytes in state.outcomes.failed_places(batch_id):
                source.seek(offset)
                writer.write(source.read(num_bytes) + b"\n")
        if writer.num_bytes == 0:
            raise ApiError(
                400, f"No line of batch {batch_id} has failed; there is nothing to try again."
            )
        blob = writer.commit()
    try:
        return scope.batches.create(
            NewBatch(
                endpoint=batch.endpoint,
                input_file_id="",
                completion_window=batch.completion_window,
                expires_at=now + state.settings.window_seconds,
                metadata=batch.metadata,
                output_expires_after_seconds=batch.output_expires_after_seconds,
                priority=batch.priority,
                retry_of=batch_id,
                idempotency=idempotency,
            ),
            now,
            NewFile(filename, "batch", blob, now + state.settings.batch_file_expires_seconds),
        )
    except BaseException:
        state.blobs.delete(blob.key)
        raise
