"""Keys, projects, and who may listen where."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from limits.storage import memory
from typer.testing import CliRunner, Result

from tests.server.live_server import HANG_SECONDS
from trunkline.__main__ import app
from trunkline.server import access as access_module
from trunkline.server.access import KNOWN_SECONDS, Access, is_loopback
from trunkline.server.app import create_app
from trunkline.server.settings import ServerSettings
from trunkline.store.database import Database
from trunkline.store.migrate import upgrade
from trunkline.store.projects import DEFAULT_PROJECT_ID, ApiKeys, Projects
from trunkline.store.records import ProjectLimits, ProjectRecord


class Installation:
    """An application on a database of its own, and its keys."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = ServerSettings(data_dir=folder, **settings)
        upgrade(self.settings.url)
        self.database = Database.open(self.settings.url)
        self.projects = Projects(self.database)
        self.keys = ApiKeys(self.database)

    def key(self, project: str = "team-a") -> str:
        return self.keys.create(self.projects.ensure(project, 0).id, "", 0)[1]

    @contextmanager
    def client(self, key: str | None = None) -> Iterator[TestClient]:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        app = create_app(self.settings)
        with TestClient(app, "http://127.0.0.1:8000", headers=headers) as client:
            yield client


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path)
    yield made
    made.database.close()


def test_without_keys_everybody_is_in_the_default_project(installation: Installation) -> None:
    for key in (None, "unused", "tl-unknown"):
        with installation.client(key) as client:
            assert client.get("/v1/files").status_code == 200


def test_with_a_key_everybody_needs_one(installation: Installation) -> None:
    key = installation.key()
    with installation.client() as client:
        reply = client.get("/v1/files")
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        error = reply.json()["error"]
        assert error["message"].startswith("You didn't provide an API key.")
        assert (error["type"], error["param"], error["code"]) == (
            "invalid_request_error",
            None,
            None,
        )
    with installation.client("sk-somebody-elses-key") as client:
        error = client.get("/v1/batches").json()["error"]
        assert error["code"] == "invalid_api_key"
        assert "somebody" not in error["message"]
    with installation.client(key) as client:
        assert client.get("/v1/files").status_code == 200
        assert client.get("/v1/files", headers={"authorization": f"Basic {key}"}).status_code == 401
        assert client.get("/v1/files", headers={"authorization": f"bearer  {key}"}).is_success


def test_a_revoked_key_opens_nothing_a_second_later(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now, time=time.time)
    monkeypatch.setattr(access_module, "time", clock)
    record, key = installation.keys.create(DEFAULT_PROJECT_ID, "", 0)
    with installation.client(key) as client:
        assert client.get("/v1/files").status_code == 200
        installation.keys.revoke(record.id, 1)
        now += KNOWN_SECONDS + 0.001
        assert client.get("/v1/files").status_code == 401
        # The last key is gone, and yet the door stays shut.
        assert client.get("/v1/files", headers={"authorization": ""}).status_code == 401


class CountingKeys(ApiKeys):
    """Knows how often a key was looked up."""

    num_lookups = 0

    def project_of(self, text: str, now: int) -> ProjectRecord | None:
        self.num_lookups += 1
        return super().project_of(text, now)


def test_a_key_is_looked_up_once_for_all_who_come_with_it(installation: Installation) -> None:
    key, wrong_key = installation.key("team-a"), "tl-wrong"
    keys = CountingKeys(installation.database)
    access = Access(installation.projects, keys, allow_anonymous=False)

    async def project(key: str) -> ProjectRecord:
        return await access.project({"authorization": f"Bearer {key}"}, 0)

    async def scenario() -> None:
        leaving, *staying = (asyncio.create_task(project(key)) for _ in range(50))
        await asyncio.sleep(0)
        leaving.cancel()
        assert {found.name for found in await asyncio.gather(*staying)} == {"team-a"}
        assert keys.num_lookups == 1
        for num_lookups in (2, 3):  # what was refused is not remembered
            refused = await asyncio.gather(
                *(project(wrong_key) for _ in range(50)), return_exceptions=True
            )
            assert {getattr(error, "status_code", error) for error in refused} == {401}
            assert keys.num_lookups == num_lookups

    asyncio.run(scenario())


def test_anonymous_requests_where_they_are_allowed(tmp_path: Path) -> None:
    installation = Installation(tmp_path, allow_anonymous=True)
    key = installation.key()
    for given, status in ((None, 200), ("unused", 200), (key, 200), ("tl-wrong", 401)):
        with installation.client(given) as client:
            assert client.get("/v1/files").status_code == status
    installation.database.close()


def test_what_needs_no_key(installation: Installation) -> None:
    installation.key()
    with installation.client() as client:
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200


def test_the_official_client_understands_the_refusals(installation: Installation) -> None:
    key = installation.key()
    installation.projects.set_limits("team-a", ProjectLimits(max_requests_per_minute=2))
    with installation.client() as transport:
        wrong = openai.OpenAI(
            api_key="sk-wrong", base_url="http://127.0.0.1:8000/v1", http_client=transport
        )
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
            wrong.files.list()
        right = wrong.with_options(api_key=key, max_retries=0)
        for _ in range(2):
            right.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            right.models.list()
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_rates_are_counted_for_each_project(installation: Installation) -> None:
    first, second = installation.key("a"), installation.key("b")
    installation.projects.set_limits("a", ProjectLimits(max_requests_per_minute=1))
    with installation.client() as client:
        statuses = [
            client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code
            for key in (first, first, second, second)
        ]
    assert statuses == [200, 429, 200, 200]


def test_a_minute_is_any_sixty_seconds(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing starts anew at a minute's end: not one request more passes around it."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(memory, "time", SimpleNamespace(time=lambda: now.seconds))
    key = installation.key("a")
    installation.projects.set_limits("a", ProjectLimits(max_requests_per_minute=2))
    minute_end = 1_000_020.0
    statuses = {}
    with installation.client() as client:
        for after in (-31, -1, 1, 28, 30, 31, 58, 60):
            now.seconds = minute_end + after
            reply = client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            statuses[after] = reply.status_code
    passed = [after for after, status in statuses.items() if status == 200]
    assert passed == [-31, -1, 30, 60]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.3", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_which_addresses_are_this_machine_only(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "rebound.example:8000"}, 403),
        ({"host": "localhost.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "https://example.org"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[bad"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_use_a_server_without_keys(
    installation: Installation, headers: dict[str, str], status: int
) -> None:
    with installation.client() as client:
        reply = client.get("/v1/files", headers=headers)
        assert reply.status_code == status
        if status == 403:
            assert reply.json()["error"]["code"] == "key_required"
    key = installation.key()
    with installation.client(key) as client:
        assert client.get("/v1/files", headers=headers).status_code == 200


@pytest.fixture
def trunkline(tmp_path: Path) -> Callable[..., Result]:
    """Runs a command in this process."""

    def run(*arguments: str) -> Result:
        given = [*arguments, "--data-dir", str(tmp_path)]
        return CliRunner().invoke(app, given, prog_name="trunkline", env={"COLUMNS": "200"})

    return run


def test_a_server_without_keys_does_not_open_itself_to_others(tmp_path: Path) -> None:
    command = ("server", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "trunkline", *command],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--host 0.0.0.0 can be reached from other machines" in line
    assert "trunkline keys create" in line
    assert "--allow-anonymous" in line


def test_keys_and_projects_from_the_shell(trunkline: Any, tmp_path: Path) -> None:
    made = trunkline("keys", "create", "--project", "team-a", "--name", "nightly")
    assert made.exit_code == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("tl-")
    assert key not in made.stderr
    listed = trunkline("keys", "list").stdout
    assert "nightly" in listed
    assert key not in listed
    key_id = next(word for word in listed.split() if word.startswith("key_"))
    limits = ("--max-queued-requests", "1000", "--max-requests-per-minute", "60")
    assert trunkline("projects", "update", "team-a", *limits).exit_code == 0
    assert trunkline("projects", "update", "team-a", "--max-queued-requests", "none").exit_code == 0
    with_limits = next(
        line for line in trunkline("projects", "list").stdout.splitlines() if "team-a" in line
    )
    assert with_limits.count("no limit") == 2
    assert "60" in with_limits
    database = Database.open(ServerSettings(data_dir=tmp_path).url)
    project = ApiKeys(database).project_of(key, 0)
    assert project is not None
    assert project.name == "team-a"
    assert trunkline("keys", "revoke", key_id).exit_code == 0
    assert ApiKeys(database).project_of(key, 0) is None
    database.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("keys", "create", "--project", "Team A"), "'Team A' is not allowed: 1 to 64 of"),
        (("keys", "revoke", "key_none"), "there is no key 'key_none'"),
        (
            ("projects", "update", "default", "--max-queued-tokens", "-3"),
            "--max-queued-tokens is '-3'; it must be a whole number",
        ),
    ],
)
def test_wrong_commands_say_what_is_allowed(
    trunkline: Any, arguments: tuple[str, ...], message: str
) -> None:
    done = trunkline(*arguments)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert message in line


def test_keys_are_not_in_the_log(make_server: Any) -> None:
    server = make_server()
    key = ApiKeys(server.database).create(DEFAULT_PROJECT_ID, "", 0)[1]
    for given in (key, key + "x"):
        httpx.get(f"{server.base_url}/v1/files", headers={"authorization": f"Bearer {given}"})
        httpx.get(f"{server.base_url}/v1/files/{given}", headers={"authorization": "Bearer x"})
    server.stop()
    assert key not in server.log
