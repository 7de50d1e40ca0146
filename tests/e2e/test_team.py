"""An installation for a team: two API servers and two engines on one PostgreSQL and one S3."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai.types import Batch

from tests.e2e.braking import Brake
from tests.e2e.team import MODEL, WAIT_SECONDS, Server, Team
from tests.support import wait_for
from trunkline.store.blobs import DiskBlobs
from trunkline.store.migrate import upgrade
from trunkline.store.records import Outcome
from trunkline.store.work import Work

pytestmark = pytest.mark.e2e

# After so many steps an engine has answered some requests of its first batch, and not all.
NUM_STEPS = 80

MakeTeam = Callable[[Path], Team]


@pytest.fixture(scope="module")
def make_team(postgres: Any, s3_server: Any) -> MakeTeam:
    """Makes a team on a database and a bucket of its own, in a folder."""

    def make(folder: Path) -> Team:
        url = postgres.create_database()
        upgrade(url)
        blob_url = f"s3://{s3_server.create_bucket()}/trunkline"
        return Team(folder, url, {"TRUNKLINE_BLOB_URL": blob_url, **s3_server.environment})

    return make


@pytest.fixture(scope="module")
def shared_team(make_team: MakeTeam, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A team whose servers run for all tests that do not kill them."""
    with closing(make_team(tmp_path_factory.mktemp("team"))) as made:
        made.start_servers()
        yield made


@pytest.fixture
def team(shared_team: Team) -> Iterator[Team]:
    """The same, with a test's own engines."""
    yield shared_team
    shared_team.kill_engines()


def make_lines(count: int, max_tokens: int = 10) -> list[dict[str, Any]]:
    """Requests whose answers have `max_tokens` tokens, and some more the later ones."""
    return [
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"Number {i}."}],
                "max_tokens": max_tokens + i % 7,
                "temperature": 0,
                "ignore_eos": True,
            },
        }
        for i in range(count)
    ]


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def check_answers(server: Server, batch: Batch, lines: list[dict[str, Any]]) -> None:
    """Every request is answered, once and in full."""
    assert batch.status == "completed"
    assert batch.error_file_id is None
    results = server.results(batch.output_file_id)
    wanted = {line["custom_id"]: line["body"]["max_tokens"] for line in lines}
    lengths = [
        (result["custom_id"], result["response"]["body"]["usage"]["completion_tokens"])
        for result in results
    ]
    assert sorted(lengths) == sorted(wanted.items())
    assert len({result["id"] for result in results}) == len(lines)
    assert batch.request_counts is not None
    counts = batch.request_counts.model_dump()
    assert counts == {"total": len(lines), "completed": len(lines), "failed": 0}
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(wanted.values())


def test_what_one_server_is_given_the_other_has_too(team: Team, tiny_model: Path) -> None:
    first, second = team.servers
    content = jsonl(make_lines(20))
    batch = first.create(content)
    assert second.client.files.content(batch.input_file_id).content == content
    wait_for(lambda: second.get(batch.id).status == "in_progress", WAIT_SECONDS)
    assert first.get(batch.id) == second.get(batch.id)
    listed = [each.id for each in second.client.batches.list()]
    assert listed == [each.id for each in first.client.batches.list()]
    assert batch.id in listed

    unwanted = first.create(content)
    assert second.client.batches.cancel(unwanted.id).status in {"cancelling", "cancelled"}
    ended = first.wait_for_end(unwanted.id)
    assert (ended.status, ended.output_file_id) == ("cancelled", None)
    for server in (first, second):
        errors = server.results(ended.error_file_id)
        assert [error["error"]["code"] for error in errors] == ["batch_cancelled"] * 20

    team.start_engines(tiny_model, 1)
    done = second.wait_for_end(batch.id)
    assert first.get(batch.id) == done
    for server in (first, second):
        check_answers(server, done, make_lines(20))
    first.client.files.delete(batch.input_file_id)
    with pytest.raises(openai.NotFoundError):
        second.client.files.content(batch.input_file_id)


@pytest.mark.parametrize("fate", [pytest.param("killed", marks=pytest.mark.slow), "frozen"])
def test_an_engine_drops_out_and_the_other_carries_on(
    team: Team, tiny_model: Path, tmp_path: Path, fate: str
) -> None:
    first, second = team.servers
    lines = make_lines(20)
    brake = Brake(tmp_path / "brake")
    brake.allow(NUM_STEPS)
    both = team.start_engines(tiny_model, 2, brake.environment)
    ids = [(first, second)[i % 2].create(jsonl(lines)).id for i in range(3)]

    # Each is in the middle of its first batch. What it has answered is committed.
    standing = brake.wait_for_all([engine.process.pid for engine in both])
    for engine, each in zip(both, standing, strict=True):
        assert 0 < each.num_answered < len(lines)
        (claimed,) = engine.claimed()
        num = each.num_answered
        wait_for(lambda num=num, id_=claimed: team.num_outcomes(id_) == num, WAIT_SECONDS)
    victim, survivor = both
    (batch_id,) = victim.claimed()
    num_done = team.num_outcomes(batch_id)
    if fate == "killed":
        victim.kill()
    else:
        team.freeze(victim, batch_id)
    assert team.lease_holder(batch_id) == victim.name
    brake.release()
    team.end_lease(batch_id)

    for each in ids:
        check_answers(second, first.wait_for_end(each), lines)
    # What was committed was not run again.
    assert dict(survivor.runs())[batch_id] == len(lines) - num_done
    taken = Counter(each for engine in both for each, _ in engine.runs())
    assert taken == Counter(ids) + Counter([batch_id])

    outcomes_before = team.outcomes(ids)
    assert Counter(each for each, _, _ in outcomes_before) == dict.fromkeys(ids, len(lines))
    if fate == "frozen":
        # It still believes that the batch is its own, and learns that it is not.
        victim.process.send_signal(signal.SIGCONT)
        wait_for(lambda: f"batch {batch_id}: lost its lease" in victim.log, WAIT_SECONDS)
        batch = first.create(jsonl(lines))
        check_answers(second, second.wait_for_end(batch.id), lines)
        victim.check_alive()
        assert outcomes_before == team.outcomes(ids)
        check_answers(first, first.get(batch_id), lines)


# What a server is doing when it is killed, and what is counted then.
STEPS = {"validating": "CHECKED_LINES", "finalizing": "WRITTEN_LINES"}


@pytest.mark.parametrize("step", [pytest.param("validating", marks=pytest.mark.slow), "finalizing"])
def test_a_server_is_killed_and_the_other_carries_on(
    make_team: MakeTeam, tmp_path: Path, step: str
) -> None:
    num_lines = 3000
    brake = Brake(tmp_path / "brake", STEPS[step])
    brake.allow(num_lines // 2)
    with closing(make_team(tmp_path)) as team:
        team.start_servers(brake.environment)
        batch_id = team.servers[0].create(jsonl(make_lines(num_lines))).id
        if step == "finalizing":
            answer_all(team, batch_id, team.servers[0])
        brake.wait()
        name = team.lease_holder(batch_id)
        (victim,) = (server for server in team.servers if server.name == name)
        (survivor,) = (server for server in team.servers if server is not victim)
        assert survivor.get(batch_id).status == step
        left_behind = psutil.Process(victim.process.pid).children(recursive=True)
        assert left_behind
        victim.kill()
        assert survivor.get(batch_id).status == step
        assert team.lease_holder(batch_id) == victim.name
        brake.release()
        team.end_lease(batch_id)

        if step == "validating":
            answer_all(team, batch_id, survivor)
        batch = survivor.wait_for_end(batch_id)
        assert batch.status == "completed"
        results = survivor.results(batch.output_file_id)
        assert Counter(result["custom_id"] for result in results) == Counter(
            line["custom_id"] for line in make_lines(num_lines)
        )
        # The input and one output: the dead server has published nothing.
        files = [file.purpose for file in survivor.client.files.list()]
        assert sorted(files) == ["batch", "batch_output"]
        _, alive = psutil.wait_procs(left_behind, timeout=WAIT_SECONDS)
        assert alive == []


def answer_all(team: Team, batch_id: str, server: Server) -> None:
    """Do an engine's part, as soon as the batch is valid, at once for all lines."""
    wait_for(lambda: server.get(batch_id).status == "in_progress", WAIT_SECONDS)
    work = Work(team.database, DiskBlobs(team.folder / "unused"))
    claim = work.claim("an engine", [MODEL], time.time(), 600)
    assert claim is not None
    body = json.dumps({"object": "chat.completion", "choices": []})
    answers = [Outcome(line, 200, body) for line in work.unfinished_lines(claim)]
    assert work.commit(claim, answers, int(time.time())) == len(answers)
    assert work.finish(claim, int(time.time()))
