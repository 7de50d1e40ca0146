"""Projects see their own objects only; keys open one project until they are revoked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from trunkline.store.batches import Batches, look_up_batches
from trunkline.store.errors import NotFound, UnknownCursor
from trunkline.store.files import Files
from trunkline.store.projects import DEFAULT_PROJECT_ID, KEY_PREFIX, ApiKeys, Projects
from trunkline.store.records import NewBatch, ProjectLimits
from trunkline.store.schema import api_keys

NOW = 1_000_000


def test_a_project_is_made_once(store: Any) -> None:
    projects = Projects(store.database)
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(projects.ensure("team-a", NOW).id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert [project.name for project in projects.list()] == ["default", "team-a"]
    assert projects.by_name("default").id == DEFAULT_PROJECT_ID


@pytest.mark.parametrize("name", ["", "Team", "a b", "-a", "a" * 65, "é"])
def test_a_project_cannot_be_called_anything(store: Any, name: str) -> None:
    with pytest.raises(ValueError, match="is not allowed: 1 to 64"):
        Projects(store.database).ensure(name, NOW)


def test_a_key_opens_its_project_until_it_is_revoked(store: Any) -> None:
    project = Projects(store.database).ensure("team-a", NOW)
    keys = ApiKeys(store.database)
    assert not keys.exist()
    record, text = keys.create(project.id, "ci", NOW)
    other, other_text = keys.create(DEFAULT_PROJECT_ID, "", NOW + 1)
    assert keys.exist()
    assert text.startswith(KEY_PREFIX)
    assert text.endswith(record.hint)
    assert keys.project_of(text, NOW) == project
    assert keys.project_of(other_text, NOW).id == DEFAULT_PROJECT_ID
    assert keys.project_of(text + "x", NOW) is None
    revoked = keys.revoke(record.id, NOW + 5)
    assert revoked.revoked_at == NOW + 5
    assert keys.revoke(record.id, NOW + 9).revoked_at == NOW + 5
    assert keys.project_of(text, NOW) is None
    assert keys.exist()
    assert [key.id for key in keys.list()] == [record.id, other.id]
    with pytest.raises(NotFound):
        keys.revoke("key_none", NOW)


def test_the_text_of_a_key_is_not_in_the_database(store: Any) -> None:
    _, text = ApiKeys(store.database).create(DEFAULT_PROJECT_ID, "ci", NOW)
    with store.database.read() as connection:
        (row,) = connection.execute(api_keys.select())
    assert text not in str(row._mapping)
    assert text.removeprefix(KEY_PREFIX)[:16] not in str(row._mapping)


def test_when_a_key_was_last_used_is_known_to_the_minute(store: Any) -> None:
    keys = ApiKeys(store.database)
    _, text = keys.create(DEFAULT_PROJECT_ID, "", NOW)
    seen = []
    for now in (NOW + 1, NOW + 30, NOW + 61, NOW + 62):
        keys.project_of(text, now)
        seen.append(keys.list()[0].last_used_at)
    assert seen == [NOW + 1, NOW + 1, NOW + 61, NOW + 61]


def test_limits(store: Any) -> None:
    projects = Projects(store.database)
    projects.ensure("team-a", NOW)
    limits = ProjectLimits(max_queued_requests=5, max_requests_per_minute=7)
    assert projects.set_limits("team-a", limits).limits == limits
    assert projects.by_name("default").limits == ProjectLimits()
    with pytest.raises(NotFound):
        projects.set_limits("nobody", limits)


def _all_of_a_batch(batches: Batches, batch_id: str) -> list[Callable[[], object]]:
    return [
        lambda: batches.get(batch_id),
        lambda: batches.plan(batch_id),
        lambda: batches.cancel(batch_id, NOW),
        lambda: batches.pause(batch_id, NOW),
        lambda: batches.resume(batch_id),
        lambda: batches.set_priority(batch_id, 3),
    ]


def test_another_project_sees_and_changes_nothing(store: Any) -> None:
    stranger = Projects(store.database).ensure("stranger", NOW).id
    batch = store.accepted()
    files, batches = Files(store.database, stranger), Batches(store.database, stranger)
    for call in _all_of_a_batch(batches, batch.id):
        with pytest.raises(NotFound):
            call()
    for call in (
        lambda: files.get(batch.input_file_id),
        lambda: files.delete(batch.input_file_id),
        lambda: batches.create(
            NewBatch("/v1/completions", batch.input_file_id, "24h", NOW + 9, None, None), NOW
        ),
    ):
        with pytest.raises(NotFound):
            call()
    assert files.list().items == ()
    assert batches.list().items == ()
    with pytest.raises(UnknownCursor):
        files.list(after=batch.input_file_id)
    with pytest.raises(UnknownCursor):
        batches.list(after=batch.id)
    assert store.batches.get(batch.id) == batch
    assert store.files.get(batch.input_file_id).id == batch.input_file_id


def test_batches_looked_up_together_are_those_of_each_project(store: Any) -> None:
    mine, other = store.accepted(), store.accepted()
    stranger = Projects(store.database).ensure("stranger", NOW).id
    # What one asks for does not spoil the answer for the others.
    keys = [
        *((DEFAULT_PROJECT_ID, id_) for id_ in (mine.id, other.id, "batch_none", "batch_\0")),
        *((stranger, id_) for id_ in (mine.id, "\0")),
    ]
    assert look_up_batches(store.database, keys) == {
        (DEFAULT_PROJECT_ID, mine.id): mine,
        (DEFAULT_PROJECT_ID, other.id): other,
    }
    assert look_up_batches(store.database, [(stranger, "\0")]) == {}


def test_output_files_belong_to_the_project_of_their_batch(store: Any) -> None:
    owner = Projects(store.database).ensure("team-a", NOW).id
    files, batches = Files(store.database, owner), Batches(store.database, owner)
    file = files.create(store.blob(), NOW)
    batch = batches.create(NewBatch("/v1/completions", file.id, "24h", NOW + 9, None, None), NOW)
    claim = store.closing.claim("server", NOW, 60)
    store.closing.accept(claim, [], "tiny", 0, NOW)
    store.closing.expire_due(NOW + 9)
    claim = store.closing.claim("server", NOW + 9, 60)
    store.closing.publish(claim, store.blob(b"out"), store.blob(b"err"), NOW + 9)
    done = batches.get(batch.id)
    assert {file.id for file in files.list().items} == {
        batch.input_file_id,
        done.output_file_id,
        done.error_file_id,
    }
    assert store.files.list().items == ()
