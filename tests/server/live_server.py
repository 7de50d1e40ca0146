"""`trunkline server` in a process of its own, and what tests ask it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch, FileObject

from tests.support import HANG_SECONDS, free_port, wait_for
from trunkline.store.blobs import BlobStore, DiskBlobs
from trunkline.store.database import Database
from trunkline.store.location import ObjectPlace
from trunkline.store.object_blobs import ObjectBlobs

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
SERVED_NAME = "tiny"  # a model that the server expects; no engine serves it


class LiveServer:
    """`trunkline server` on a data folder and a database."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.data_dir = folder / "data"
        self.database_url = database_url
        self.database = Database.open(database_url)
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.base_url, timeout=HANG_SECONDS)
        self.client = openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="unused", max_retries=0)
        self._settings = {
            "served_model_name": SERVED_NAME,
            "server_name": "server-under-test",
            "server_poll_seconds": 0.1,
            **settings,
        }
        self._environment = environment or {}
        self._log_path = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def start(self) -> None:
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start without waiting for it."""
        environment = {f"TRUNKLINE_{k.upper()}": str(v) for k, v in self._settings.items()}
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "trunkline", "server", "--port", str(self.port)),
                    *("--data-dir", str(self.data_dir), "--database-url", self.database_url),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONSAFEPATH": "1", **self._environment, **environment},
            )

    def wait_until_ready(self) -> None:
        wait_for(self._is_ready, HANG_SECONDS)

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            # Not by `self.http`, which may ask another server.
            url = f"{self.base_url}/readyz"
            return httpx.get(url, timeout=HANG_SECONDS).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL to the server's own process alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask the server to stop; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(HANG_SECONDS)

    def close(self) -> None:
        """End everything."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.http.close()
        self.client.close()
        self.database.close()

    def upload(self, content: bytes, **options: Any) -> FileObject:
        return self.client.files.create(file=("in.jsonl", content), purpose="batch", **options)

    def create(self, content: bytes, endpoint: Any = CHAT, **options: Any) -> Batch:
        """Create a batch with this input file."""
        return self.client.batches.create(
            input_file_id=self.upload(content).id,
            endpoint=endpoint,
            completion_window="24h",
            **options,
        )

    def wait(self, batch_id: str, *statuses: str) -> Batch:
        """The batch as soon as it has one of these statuses."""

        def reached() -> Batch | None:
            batch = self.client.batches.retrieve(batch_id)
            if batch.status in statuses:
                return batch
            assert batch.status not in ENDED, batch
            return None

        return wait_for(reached, HANG_SECONDS)

    def wait_for_end(self, batch_id: str) -> Batch:
        return self.wait(batch_id, *ENDED)

    def blob_store(self) -> BlobStore:
        """The same bytes as the server's, for an engine."""
        return DiskBlobs(self.data_dir / "blobs")

    def blobs(self) -> set[Path]:
        """Where uploads and results are kept; the last part of each path is the blob's key."""
        return {path for path in (self.data_dir / "blobs").rglob("*") if path.is_file()}

    def delete_blob(self, path: Path) -> None:
        """Take away one of `blobs`, as an administrator may who does not know better."""
        self.blob_store().delete(path.name)

    def results(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file; none if there is no file."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]

    def errors(self, content: bytes) -> list[tuple[str | None, int | None, str | None]]:
        """Code, line and parameter of all that is wrong with an input file."""
        batch = self.wait_for_end(self.create(content).id)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors.data is not None
        return [(error.code, error.line, error.param) for error in batch.errors.data]


class Alternating(httpx.HTTPTransport):
    """Sends each request to the next of several servers, whatever its URL says."""

    def __init__(self, base_urls: Sequence[str]) -> None:
        super().__init__()
        self._next = cycle(map(httpx.URL, base_urls))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        place = next(self._next)
        request.url = request.url.copy_with(host=place.host, port=place.port)
        return super().handle_request(request)


class TwoServers(LiveServer):
    """Two servers on one PostgreSQL and one bucket. What one is asked, the other must know.

    The clients send every request to the other server; who goes by the base URL meets the first.
    """

    def __init__(self, folder: Path, database_url: str, s3: Any, **settings: object) -> None:
        self._s3, self._bucket = s3, s3.create_bucket()
        place = {"TRUNKLINE_BLOB_URL": f"s3://{self._bucket}/a/prefix", **s3.environment}
        super().__init__(folder, database_url, place, server_name="first-server", **settings)
        (folder / "second").mkdir()
        self._second = LiveServer(
            folder / "second", database_url, place, server_name="second-server", **settings
        )
        self.http.close()
        self.client.close()
        urls = (self.base_url, self._second.base_url)
        self.http = httpx.Client(
            base_url=self.base_url, timeout=HANG_SECONDS, transport=Alternating(urls)
        )
        self.client = openai.OpenAI(
            base_url=f"{self.base_url}/v1",
            api_key="unused",
            max_retries=0,
            # The client takes those of httpx too, whatever its annotation says.
            http_client=httpx.Client(transport=Alternating(urls), timeout=HANG_SECONDS),  # type: ignore[arg-type]
        )

    @property
    def log(self) -> str:
        return super().log + self._second.log

    def launch(self) -> None:
        super().launch()
        self._second.launch()

    def wait_until_ready(self) -> None:
        super().wait_until_ready()
        self._second.wait_until_ready()

    def close(self) -> None:
        self._second.close()
        super().close()

    def blob_store(self) -> BlobStore:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._s3.environment.items():
                patch.setenv(name, value)
            return ObjectBlobs(ObjectPlace(self._bucket, "a/prefix"))

    def blobs(self) -> set[Path]:
        return {Path(key) for key in self._s3.keys(self._bucket)}
