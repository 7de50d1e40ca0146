"""The server's API over httpx.

httpx and not the official client: half of what is asked for here is not in that client (events,
partial results, pausing), uploads and downloads are streamed with progress, a repetition is decided
for each request by itself, and it takes a second less to import.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import httpx

import trunkline
from trunkline.server.client.errors import BadReply, Refused, Unreachable, WrongUse
from trunkline.server.client.replies import (
    Batch,
    BatchList,
    Identified,
    Progress,
    Upload,
    parse,
)
from trunkline.server.client.settings import ClientSettings, find_key

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
# What was uploaded is checked and put together before the answer comes.
UPLOAD_READ_SECONDS = 900.0
# The server sends something at least every 15 s.
EVENT_SECONDS = 45.0

# Pauses before a request is repeated.
PAUSES = (0.5, 1.0, 2.0)
MAX_PAUSE_SECONDS = 30.0
# The request was not looked at, or a proxy cannot tell what became of it.
NOT_LOOKED_AT = (429, 503)
LOST_BY_PROXY = (502, 504)
NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)

BATCH_ID = re.compile("[A-Za-z0-9_-]{1,128}")


class Api:
    """One server, seen with one key. All calls raise ServerError."""

    def __init__(self, settings: ClientSettings) -> None:
        key = find_key(settings)
        try:
            host = httpx.URL(settings.base_url).host
        except httpx.InvalidURL as error:
            raise WrongUse(f"--base-url is {settings.base_url!r}: {error}") from None
        self._base_url = settings.base_url
        self._has_key = key is not None
        self._has_answered = False
        self._http = httpx.Client(
            base_url=settings.base_url,
            headers={
                "user-agent": f"trunkline/{trunkline.__version__}",
                **({} if key is None else {"authorization": f"Bearer {key}"}),
            },
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            # A proxy has nothing to do with a server on this machine.
            trust_env=not _is_loopback(host),
        )

    def close(self) -> None:
        self._http.close()

    def batch_json(self, batch_id: str) -> Any:
        """The batch as the server sent it."""
        return self._get(_path(batch_id))

    def batch(self, batch_id: str) -> Batch:
        return parse(Batch, self.batch_json(batch_id), self._base_url)

    def batches_json(self, limit: int) -> Any:
        """The newest batches as the server sent them."""
        return self._get("/v1/batches", params={"limit": limit})

    def batches(self, limit: int) -> BatchList:
        return parse(BatchList, self.batches_json(limit), self._base_url)

    def create_batch(self, body: dict[str, Any], idempotency_key: str) -> Batch:
        return self._post_for_batch("/v1/batches", idempotency_key, json=body)

    def retry(self, batch_id: str, idempotency_key: str) -> Batch:
        """The new batch of the failed lines."""
        return self._post_for_batch(f"{_path(batch_id)}/retry", idempotency_key)

    def act(self, batch_id: str, action: str) -> Batch:
        """Cancel, pause or resume a batch."""
        reply = self._json(self._send("POST", f"{_path(batch_id)}/{action}"))
        return parse(Batch, reply, self._base_url)

    def progress(self, batch_id: str) -> Progress | None:
        """Pace and reasons of failure; None from a server that does not tell."""
        try:
            reply = self._get(f"{_path(batch_id)}/progress")
        except Refused as refused:
            if refused.status_code in {404, 405}:
                return None
            raise
        return parse(Progress, reply, self._base_url)

    def upload_file(self, filename: str, file: BinaryIO) -> str:
        """Upload a batch file; its id. Sent twice, it is there twice."""
        reply = self._send(
            "POST",
            "/v1/files",
            read_seconds=UPLOAD_READ_SECONDS,
            data={"purpose": "batch"},
            files={"file": (filename, file, "application/jsonl")},
        )
        return parse(Identified, self._json(reply), self._base_url).id

    def delete_file(self, file_id: str) -> None:
        self._send("DELETE", f"/v1/files/{file_id}")

    def create_upload(self, filename: str, num_bytes: int) -> str:
        """Announce a batch file that comes in parts; the upload's id."""
        body = {
            "filename": filename,
            "purpose": "batch",
            "bytes": num_bytes,
            "mime_type": "application/jsonl",
        }
        reply = self._json(self._send("POST", "/v1/uploads", json=body))
        return parse(Upload, reply, self._base_url).id

    def add_part(self, upload_id: str, part: BinaryIO) -> str:
        """Upload a part; its id. A part that is sent twice has two ids, one of them unused."""
        reply = self._send(
            "POST",
            f"/v1/uploads/{upload_id}/parts",
            read_seconds=UPLOAD_READ_SECONDS,
            files={"data": ("part", part, "application/octet-stream")},
        )
        return parse(Identified, self._json(reply), self._base_url).id

    def complete_upload(self, upload_id: str, part_ids: list[str]) -> str:
        """Make the file of the parts; its id."""
        reply = self._send(
            "POST",
            f"/v1/uploads/{upload_id}/complete",
            read_seconds=UPLOAD_READ_SECONDS,
            json={"part_ids": part_ids},
        )
        upload = parse(Upload, self._json(reply), self._base_url)
        if upload.file is None:
            raise BadReply(f"{self._base_url} completed the upload {upload_id} without a file")
        return upload.file.id

    def cancel_upload(self, upload_id: str) -> None:
        self._send("POST", f"/v1/uploads/{upload_id}/cancel")

    @contextmanager
    def file_content(self, file_id: str) -> Iterator[Iterator[bytes]]:
        """The bytes of a file, as they come."""
        with self._stream(f"/v1/files/{file_id}/content") as response:
            yield response.iter_bytes()

    @contextmanager
    def results(
        self, batch_id: str, kind: str, offset: int
    ) -> Iterator[tuple[Iterator[bytes], int, bool]]:
        """What is there by now of the `output` or the `errors` of a batch.

        Yields:
            The bytes as they come, the offset to go on from, and whether more may come.
        """
        path = f"{_path(batch_id)}/{kind}"
        with self._stream(path, params={"offset": offset}) as response:
            last_line = response.headers.get("x-last-line", "")
            if not last_line.isdecimal():
                raise BadReply(
                    f"{self._base_url} does not hand out results while a batch runs; fetch them "
                    "without --partial when it has ended"
                )
            is_incomplete = response.headers.get("x-incomplete") != "false"
            yield response.iter_bytes(), int(last_line), is_incomplete

    def events(self, batch_id: str) -> Generator[Batch]:
        """The batch at once and whenever it has changed, as long as the connection lasts."""
        with self._stream(f"{_path(batch_id)}/events", read_seconds=EVENT_SECONDS) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise Refused(f"{self._base_url} sends no events", 404)
            for data in _event_data(response.iter_bytes(), "batch"):
                yield parse(Batch, _parse_json(data, self._base_url), self._base_url)

    def _get(self, path: str, **request: Any) -> Any:
        return self._json(self._send("GET", path, **request))

    def _post_for_batch(self, path: str, idempotency_key: str, **request: Any) -> Batch:
        headers = {"Idempotency-Key": idempotency_key}
        reply = self._send("POST", path, headers=headers, **request)
        return parse(Batch, self._json(reply), self._base_url)

    def _json(self, response: httpx.Response) -> Any:
        return _parse_json(response.content, self._base_url)

    @contextmanager
    def _stream(self, path: str, **request: Any) -> Iterator[httpx.Response]:
        response = self._send("GET", path, is_stream=True, **request)
        try:
            yield response
        except httpx.RequestError as error:
            raise self._unreachable(error) from None
        finally:
            response.close()

    def _send(
        self,
        method: str,
        path: str,
        *,
        is_stream: bool = False,
        read_seconds: float = READ_SECONDS,
        **content: Any,
    ) -> httpx.Response:
        """A successful response. Every request of this module may be repeated.

        Raises:
            Unreachable, Refused.
        """
        timeout = httpx.Timeout(read_seconds, connect=CONNECT_SECONDS)
        for pause in (*PAUSES, None):
            # Made anew each time, so that a file is read from its start.
            request = self._http.build_request(method, path, timeout=timeout, **content)
            try:
                response = self._http.send(request, stream=is_stream)
                if is_stream and not response.is_success:
                    response.read()
            except httpx.RequestError as error:
                # A server that was never there will not be in two seconds.
                was_never_there = isinstance(error, NOT_CONNECTED) and not self._has_answered
                if pause is None or was_never_there or isinstance(error, httpx.ReadTimeout):
                    raise self._unreachable(error) from None
                time.sleep(pause)
                continue
            self._has_answered = True
            if response.is_success:
                return response
            is_passing = response.status_code in (*NOT_LOOKED_AT, *LOST_BY_PROXY)
            wait = _retry_after(response)
            if pause is None or not is_passing or (wait or 0) > MAX_PAUSE_SECONDS:
                raise self._refused(response)
            time.sleep(pause if wait is None else wait)
        raise AssertionError("the last attempt returns or raises")

    def _unreachable(self, error: httpx.RequestError) -> Unreachable:
        if isinstance(error, NOT_CONNECTED):
            return Unreachable(
                f"there is no server at {self._base_url} ({_reason(error)}); start one with "
                "`trunkline serve`, or give --base-url or TRUNKLINE_BASE_URL"
            )
        return Unreachable(
            f"the connection to {self._base_url} was lost ({_reason(error)}); run the command "
            "again",
            was_silent=isinstance(error, httpx.ReadTimeout),
        )

    def _refused(self, response: httpx.Response) -> Refused:
        status = response.status_code
        said = _error_message(response)
        if said is None:
            said = (
                f"{self._base_url} answered {status} {response.reason_phrase} to "
                f"{response.request.method} {response.request.url.path}, and not as a Trunkline "
                "server does; is --base-url right?"
            )
        elif status == 401:
            which = "the key it was given" if self._has_key else "a request without a key"
            said = (
                f"{self._base_url} refused {which}; give a key of that server with --api-key or "
                f"TRUNKLINE_API_KEY: {said}"
            )
        elif status == 404 and response.request.url.path.startswith("/v1/batches/"):
            said = f"{said} `trunkline status` lists the batches of {self._base_url}"
        return Refused(said, status)


def _path(batch_id: str) -> str:
    if not BATCH_ID.fullmatch(batch_id):
        raise WrongUse(
            f"{batch_id!r} is no id of a batch; ids look like batch_1a2b3c, and `trunkline "
            "status` lists them"
        )
    return f"/v1/batches/{batch_id}"


def _parse_json(raw: bytes, source: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise BadReply(
            f"{source} answered with something that is not JSON; is --base-url a Trunkline server?"
        ) from None


def _error_message(response: httpx.Response) -> str | None:
    """What the server said, if it said it as OpenAI's API does."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return None
    return message if isinstance(message, str) and message else None


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait for."""
    value = response.headers.get("retry-after", "")
    return float(value) if re.fullmatch("[0-9]{1,6}", value) else None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _event_data(chunks: Iterator[bytes], wanted: str) -> Iterator[bytes]:
    """The data of the server-sent events named `wanted`."""
    name, data, rest = "message", b"", b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            field, _, value = line.partition(b":")
            if field == b"event":
                name = value.strip().decode(errors="replace")
            elif field == b"data":
                data += value.removeprefix(b" ") + b"\n"
            elif not line:
                if data and name == wanted:
                    yield data
                name, data = "message", b""
