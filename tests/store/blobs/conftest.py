"""Blob stores of both kinds, the second on the S3 server of the test run.

Faults that this server does not have are made by a gateway before it.
"""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trunkline.store.blobs import BlobStore, DiskBlobs
from trunkline.store.location import ObjectPlace
from trunkline.store.object_blobs import ObjectBlobs


class Gateway(ThreadingHTTPServer):
    """Passes requests on to a server, and answers some with a fault."""

    daemon_threads = True

    def __init__(self, target_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _GatewayHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.target = target_url.removeprefix("http://")
        self.max_keys = 1000  # in an answer to a request for a list
        self.requests: list[str] = []  # "METHOD path"
        # Which status a request is answered with; 0: none, the connection is closed; None: it is
        # passed on.
        self.fault: Callable[[str], int | None] = lambda request: None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may close connections as they like."""


class _GatewayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        request = f"{self.command} {self.path}"
        self.server.requests.append(request)
        status = self.server.fault(request)
        if status is None:
            self._pass_on(body)
        elif status == 0:
            self.close_connection = True
        else:
            # S3 repeats what was signed when it refuses a signature.
            echo = f"<Error><Code>Refused</Code><Echo>{self.headers}</Echo></Error>".encode()
            self.send_response(status)
            self.send_header("content-length", str(len(echo)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(echo)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815  # as the base has it

    def _pass_on(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.server.target)
        limit = f"&max-keys={self.server.max_keys}" if "list-type=2" in self.path else ""
        connection.request(self.command, self.path + limit, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        self.send_response_only(response.status, response.reason)
        for name, value in response.headers.items():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = response.headers.get("content-length", str(len(content)))
        self.send_header("content-length", length)
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    def log_message(self, *_: Any) -> None:
        """Not on the console."""


@pytest.fixture
def gateway(s3_server: Any) -> Iterator[Gateway]:
    server = Gateway(s3_server.url)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch, s3_server: Any) -> dict[str, str]:
    """What whoever runs the program has set."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    environment: dict[str, str] = {**s3_server.environment, "AWS_SESSION_TOKEN": "session-token"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def bucket(s3_server: Any, aws_environment: dict[str, str]) -> str:
    name: str = s3_server.create_bucket()
    return name


@pytest.fixture
def object_blobs(bucket: str) -> ObjectBlobs:
    return ObjectBlobs(ObjectPlace(bucket, "a prefix/größe %41/日本"))


@pytest.fixture
def gateway_blobs(bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> ObjectBlobs:
    """Blobs behind the gateway."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url)
    return ObjectBlobs(ObjectPlace(bucket, ""))


class Place:
    """Blobs, and a look at what is really there."""

    def __init__(self, blobs: BlobStore, contents: Callable[[], set[str]]) -> None:
        self.blobs = blobs
        self.contents = contents


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty blob store of each kind in turn."""
    if request.param == "disk":
        folder = tmp_path / "blobs"
        return Place(
            DiskBlobs(folder),
            lambda: {str(path) for path in folder.rglob("*") if path.is_file()},
        )
    server = request.getfixturevalue("s3_server")
    bucket: str = request.getfixturevalue("bucket")
    return Place(request.getfixturevalue("object_blobs"), lambda: server.keys(bucket))


@pytest.fixture
def blobs(place: Place) -> BlobStore:
    return place.blobs
