"""Uploads: files that are sent in parts, one after the other or at the same time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request

# Pydantic, which describes these types in the OpenAPI document, cannot read Python 3.11's own.
from typing_extensions import TypedDict

from trunkline.server.errors import ApiError, invalid_value
from trunkline.server.json_body import read_object
from trunkline.server.multipart import read_upload
from trunkline.server.new_file import (
    PURPOSES,
    FileContent,
    SizeLimits,
    check_content_length,
    file_expires_at,
    too_large,
)
from trunkline.server.new_upload import (
    MAX_PARTS,
    MD5,
    parse_md5,
    parse_new_upload,
    parse_part_ids,
)
from trunkline.server.openapi import EXPIRES_AFTER, json_body, multipart_body
from trunkline.server.scope import Scope, ScopeOf
from trunkline.server.state import State, StateOf
from trunkline.server.wire import FileObject, file_object
from trunkline.server.writing import blob_writer
from trunkline.store.errors import NotFound
from trunkline.store.records import FileRecord, NewFile, StoredBlob
from trunkline.store.uploads import (
    PartLimits,
    UploadClosed,
    UploadFull,
    UploadPart,
    UploadRecord,
    UploadStatus,
    UploadSweep,
)

router = APIRouter(prefix="/v1/uploads")

MAX_PART_BYTES = 64 * 1024 * 1024
READ_BYTES = 1024 * 1024


class UploadObject(TypedDict):
    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None


class PartObject(TypedDict):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


NEW_UPLOAD = json_body(
    {
        "filename": {"type": "string"},
        "purpose": {"enum": list(PURPOSES)},
        "bytes": {"type": "integer", "minimum": 0},
        "mime_type": {"type": "string"},
        "expires_after": EXPIRES_AFTER,
    },
    ["filename", "purpose", "bytes", "mime_type"],
)
NEW_PART = multipart_body({"data": {"type": "string", "format": "binary"}}, ["data"])
COMPLETION = json_body(
    {
        "part_ids": {"type": "array", "items": {"type": "string"}, "maxItems": MAX_PARTS},
        "md5": {"type": "string", "pattern": f"^{MD5.pattern}$"},
    },
    ["part_ids"],
)


@router.post("", openapi_extra=NEW_UPLOAD)
async def create(request: Request, state: StateOf, scope: ScopeOf) -> UploadObject:
    """Announce a file. It must be completed before the upload expires."""
    new = parse_new_upload(await read_object(request), _size_limits(state))
    now = state.now()
    expires_at = now + state.settings.upload_expires_seconds
    return upload_object(await run_sync(scope.uploads.create, new, now, expires_at))


@router.post("/{upload_id}/parts", openapi_extra=NEW_PART)
async def add_part(upload_id: str, request: Request, state: StateOf, scope: ScopeOf) -> PartObject:
    """Add some bytes. Parts may be sent at the same time: their order is told at completion."""
    upload = await run_sync(scope.uploads.get, upload_id, state.now())
    if upload.status is not UploadStatus.PENDING:
        raise _closed("add a part to", upload.status)
    check_content_length(request.headers, "data", MAX_PART_BYTES)
    async with blob_writer(state.blobs) as writer:

        def write(data: bytes, _: Mapping[str, str]) -> None:
            num_bytes = writer.num_bytes + len(data)
            if num_bytes > MAX_PART_BYTES:
                raise too_large("data", MAX_PART_BYTES)
            if num_bytes > upload.num_bytes:
                raise ApiError(
                    400,
                    f"The part is larger than the whole upload, of which {upload.num_bytes} bytes "
                    "were announced.",
                    "data",
                    "size_mismatch",
                )
            writer.write(data)

        await read_upload(request.headers.get("content-type"), request.stream(), "data", write)

        def store() -> UploadPart:
            blob = writer.commit()
            limits = PartLimits(MAX_PARTS, state.settings.max_upload_bytes)
            try:
                return scope.uploads.add_part(upload_id, blob, limits, state.now())
            except BaseException:
                state.blobs.delete(blob.key)
                raise

        try:
            part = await run_sync(store)
        except UploadClosed as closed:
            raise _closed("add a part to", closed.status) from None
        except UploadFull as full:
            raise ApiError(400, f"The upload {full.reason}", "data", "upload_full") from None
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": part.created_at,
        "upload_id": part.upload_id,
    }


@router.post("/{upload_id}/complete", openapi_extra=COMPLETION)
async def complete(
    upload_id: str, request: Request, state: StateOf, scope: ScopeOf
) -> UploadObject:
    """Make the upload's file. The same request again is answered in the same way again."""
    body = await read_object(request)
    part_ids, md5 = parse_part_ids(body.get("part_ids")), parse_md5(body.get("md5"))
    return await run_sync(_complete, state, scope, upload_id, part_ids, md5)


@router.post("/{upload_id}/cancel")
def cancel(upload_id: str, state: StateOf, scope: ScopeOf) -> UploadObject:
    """Give an upload up; its parts are deleted."""
    try:
        upload = scope.uploads.cancel(upload_id, state.now())
    except UploadClosed as closed:
        raise _closed("cancel", closed.status) from None
    UploadSweep(state.database, state.blobs).delete_parts(upload_id)
    return upload_object(upload)


def _complete(
    state: State, scope: Scope, upload_id: str, part_ids: Sequence[str], md5: str | None
) -> UploadObject:
    upload = scope.uploads.get(upload_id, state.now())
    if upload.status is UploadStatus.PENDING:
        try:
            upload, file = _make_file(state, scope, upload, part_ids, md5)
        except (ApiError, FileNotFoundError, UploadClosed):
            # Parts go as soon as somebody else has ended the upload; then that is the reason.
            upload = scope.uploads.get(upload_id, state.now())
            if upload.status is UploadStatus.PENDING:
                raise
        else:
            UploadSweep(state.database, state.blobs).delete_parts(upload_id)
            return upload_object(upload, file)
    if upload.status is not UploadStatus.COMPLETED:
        raise _closed("complete", upload.status)
    if not upload.is_made_of(part_ids):
        raise ApiError(
            409, f"Upload {upload_id} is completed already, with other parts.", "part_ids"
        )
    try:
        return upload_object(upload, scope.files.get(upload.file_id or ""))
    except NotFound:  # deleted since
        return upload_object(upload)


def _make_file(
    state: State, scope: Scope, upload: UploadRecord, part_ids: Sequence[str], md5: str | None
) -> tuple[UploadRecord, FileRecord]:
    stored = scope.uploads.parts(upload.id)
    unknown = next((part_id for part_id in part_ids if part_id not in stored), None)
    if unknown is not None:
        raise invalid_value(
            "part_ids",
            f"Invalid value for 'part_ids': the upload {upload.id} has no part '{unknown}'.",
        )
    parts = [stored[part_id] for part_id in part_ids]
    num_bytes = sum(part.num_bytes for part in parts)
    if num_bytes != upload.num_bytes:
        raise ApiError(
            400,
            f"The parts have {num_bytes} bytes; {upload.num_bytes} were announced when the upload "
            "was created.",
            "part_ids",
            "size_mismatch",
        )
    blob = _join(state, upload, parts, md5)
    try:
        now = state.now()
        expires_at = file_expires_at(
            now,
            upload.file_expires_after_seconds,
            upload.purpose,
            state.settings.batch_file_expires_seconds,
        )
        new = NewFile(upload.filename, upload.purpose, blob, expires_at)
        return scope.uploads.complete(upload.id, part_ids, new, now)
    except BaseException:
        state.blobs.delete(blob.key)
        raise


def _join(
    state: State, upload: UploadRecord, parts: Sequence[UploadPart], md5: str | None
) -> StoredBlob:
    """One blob of the bytes of all parts, if they are what they should be."""
    digest = hashlib.md5(usedforsecurity=False)
    with state.blobs.writer() as writer:
        content = FileContent(writer, _size_limits(state))
        for part in parts:
            with state.blobs.open(part.blob_key) as source:
                while data := source.read(READ_BYTES):
                    if state.stopping.is_set():
                        raise ApiError(503, "The server is stopping.", kind="server_error")
                    content.write(data, upload.purpose)
                    if md5 is not None:
                        digest.update(data)
        if md5 is not None and md5.lower() != digest.hexdigest():
            raise ApiError(
                400,
                f"The md5 of the parts is {digest.hexdigest()}, not {md5}.",
                "md5",
                "md5_mismatch",
            )
        content.check(upload.purpose, upload.filename)
        return writer.commit()


def upload_object(upload: UploadRecord, file: FileRecord | None = None) -> UploadObject:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.num_bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status.value,
        "file": None if file is None else file_object(file),
    }


def _size_limits(state: State) -> SizeLimits:
    settings = state.settings
    return SizeLimits(settings.max_upload_bytes, settings.max_batch_file_bytes)


def _closed(action: str, status: UploadStatus) -> ApiError:
    return ApiError(409, f"Cannot {action} an upload with status '{status}'.")
