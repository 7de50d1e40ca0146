"""Fixtures of several suites, databases of both kinds, S3; and Triton, imported before all else.

Tests may run in several processes at once (pytest-xdist): they share the processors then.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support import cache_dir, free_port, missing
from trunkline.kernels import native
from trunkline.store.database import Database
from trunkline.store.migrate import upgrade

# The machine may be busy: an example may take its time.
settings.register_profile(
    "unhurried",
    settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unhurried")

# Each process of the tests, and each engine that it starts, takes its share of the processors.
NUM_THREADS = max(
    1, len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
)
torch.set_num_threads(NUM_THREADS)
os.environ.setdefault("TRUNKLINE_THREADS", str(NUM_THREADS))

# When Triton is first imported, it decides whether its own functions are interpreted or compiled.
# Any suite may import a library that imports it, so it is imported here, for the interpreter; the
# suites of the GPU kernels import these in the same way. No other shall take it for available.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("triton")
    finally:
        del os.environ["TRITON_INTERPRET"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so where no test has seen a compiled CPU kernel; a CPU without them skips their tests."""
    try:
        native.build(cache_dir() / "kernels")
    except native.NativeUnavailableError as error:
        terminalreporter.section("compiled CPU kernels: NOT TESTED", yellow=True)
        terminalreporter.line(f"{error}. A CPU with AVX512-BF16 runs these tests too.")


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps them out of the PATH."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class PostgresServer:
    """A PostgreSQL server of the test run's own, without durability."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        # PostgreSQL refuses to run as root, so root becomes somebody else for it.
        self._user = "nobody" if os.geteuid() == 0 else None
        self._port = free_port()
        self.url = f"postgresql://trunkline@127.0.0.1:{self._port}"

    def start(self) -> None:
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self._folder, entry.pw_uid, entry.pw_gid)
        data = str(self._folder / "data")
        self._run("initdb", "-D", data, "-U", "trunkline", "-A", "trust", "-E", "UTF8", "-N")
        settings = f"-F -p {self._port} -h 127.0.0.1 -k {self._folder}"
        settings += " -c max_connections=200 -c autovacuum=off"
        self._run(
            "pg_ctl", "-D", data, "-l", str(self._folder / "log"), "-w", "-o", settings, "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "stop")

    def create_database(self) -> str:
        """A new, empty database; its URL."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"{self.url}/{name}"

    def drop_database(self, url: str) -> None:
        """Delete a database at once: hundreds of them would be written to the disk meanwhile."""
        name = url.rpartition("/")[2]
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            user=self._user,
            cwd=self._folder,
            env={**os.environ, "LC_ALL": "C"},
        )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in the test's own thread: small tensors are not worth sharing out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    programs = find_postgres()
    if programs is None:
        missing("PostgreSQL is not installed")
        raise AssertionError
    # Not below pytest's own folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="trunkline-pg-", dir="/tmp") as folder:
        server = PostgresServer(programs, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with all migrations, to be copied: they take ten times as long."""
    path = tmp_path_factory.mktemp("migrated") / "test.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def database_url(empty_database_url: str, migrated_sqlite: Path) -> str:
    """The URL of a fresh database with all migrations, of each kind in turn."""
    if empty_database_url.startswith("sqlite"):
        shutil.copyfile(migrated_sqlite, empty_database_url.removeprefix("sqlite:///"))
    else:
        upgrade(empty_database_url)
    return empty_database_url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database.open(database_url)
    yield opened
    opened.close()


class S3Server:
    """An S3 server of the test run's own: moto, in a process, with everything in memory."""

    START_SECONDS = 60.0

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + self.START_SECONDS
        while True:
            assert self._process.poll() is None, "moto has ended"
            assert time.monotonic() < deadline, "moto does not answer"
            try:
                httpx.get(self.url)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to find it."""
        return {
            "AWS_ACCESS_KEY_ID": "access-key",
            "AWS_SECRET_ACCESS_KEY": "secret-key",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }

    def create_bucket(self) -> str:
        """A new, empty bucket; its name."""
        name = f"bucket-{uuid.uuid4().hex}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return name

    def keys(self, bucket: str) -> set[str]:
        """The objects of a bucket, and the uploads in parts that were begun."""
        found: set[str] = set()
        for query in ("list-type=2", "uploads"):
            reply = httpx.get(f"{self.url}/{bucket}?{query}").raise_for_status()
            found.update(re.findall("<Key>(.*?)</Key>", reply.text))
        return found


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    try:
        server.wait()
        yield server
    finally:
        server.stop()
