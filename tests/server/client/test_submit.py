"""`trunkline submit` against a live server."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from trunkline.server.client import upload
from trunkline.server.client.errors import WrongUse

# What a client sees of a server is the same on every database.
pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


def test_submit_prints_the_id(run: Any, server: Any, engine: Any, batch_file: Path) -> None:
    result = run(
        *("submit", batch_file, "--metadata", "a=1", "--metadata", "b=x=y", "--priority", -3),
        url=f"{server.base_url}/v1/",
    )
    assert result.exit_code == 0
    batch = server.http.get(f"/v1/batches/{result.stdout.strip()}").json()
    assert batch["metadata"] == {"a": "1", "b": "x=y"}
    assert batch["trunkline"]["priority"] == -3
    assert server.client.files.retrieve(batch["input_file_id"]).filename == "in.jsonl"
    assert server.client.files.content(batch["input_file_id"]).read() == batch_file.read_bytes()
    engine.complete(engine.claim())


def test_submit_watch_and_fetch(
    run: Any,
    working: Any,
    custom_ids: Any,
    server: Any,
    engine: Any,
    batch_file: Path,
    tmp_path: Path,
) -> None:
    output, errors = tmp_path / "out.jsonl", tmp_path / "err.jsonl"
    with working(engine):
        result = run(
            *("submit", batch_file, "--watch", "--fetch", "-o", output, "--errors", errors),
            url=server.base_url,
        )
    assert result.exit_code == 0
    assert custom_ids(output) == [f"request-{i}" for i in range(5)]
    assert errors.read_bytes() == b""
    assert "\x1b" not in result.output
    assert "completed 5/5" in result.stderr
    assert {path.name for path in tmp_path.glob("*")} >= {"in.jsonl", "out.jsonl", "err.jsonl"}
    assert not list(tmp_path.glob(".*.part"))


def test_failed_lines_are_told_by_the_exit_status(
    run: Any,
    complaint: Any,
    working: Any,
    custom_ids: Any,
    server: Any,
    engine: Any,
    batch_file: Path,
    tmp_path: Path,
) -> None:
    output, errors = tmp_path / "out.jsonl", tmp_path / "err.jsonl"
    with working(engine, frozenset({"request-1", "request-4"})):
        result = run(
            *("submit", batch_file, "--fetch", "-o", output, "--errors", errors),
            url=server.base_url,
        )
    assert result.exit_code == 1
    assert "is completed, and 2 of 5 lines have no answer" in complaint(result)
    assert custom_ids(output) == ["request-0", "request-2", "request-3"]
    assert custom_ids(errors) == ["request-1", "request-4"]


def test_results_on_standard_output_are_alone_there(
    run: Any, working: Any, server: Any, engine: Any, batch_file: Path
) -> None:
    with working(engine):
        result = run("submit", batch_file, "--fetch", "-o", "-", url=server.base_url)
    assert result.exit_code == 0
    assert [json.loads(line)["custom_id"] for line in result.stdout.splitlines()] == [
        f"request-{i}" for i in range(5)
    ]
    assert "batch_" in result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no requests"),
        (b"\n\n", "has no requests"),
        (
            b"%PDF-1.7\x00\xff",
            "line 1: This line is not parseable as valid JSON. Nothing was sent.",
        ),
        (b'GOOD\n\n{"custom_id": "b"}\n[]\n', "line 3: Missing required parameter: 'method'."),
        (b"GOOD\nGOOD\n", "line 2: The custom_id 'request-0' for this request is a duplicate"),
    ],
)
def test_a_bad_file_is_not_sent(
    run: Any, complaint: Any, server: Any, engine: Any, tmp_path: Path, content: bytes, said: str
) -> None:
    before = len(server.http.get("/v1/files?purpose=batch").json()["data"])
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content.replace(b"GOOD", json.dumps(engine.line("request-0")).encode()))
    result = run("submit", path, url=server.base_url)
    assert result.exit_code == 2
    assert complaint(result).startswith(str(path))
    assert said in complaint(result)
    assert len(server.http.get("/v1/files?purpose=batch").json()["data"]) == before


def test_an_endpoint_that_the_lines_do_not_ask_for(
    run: Any, complaint: Any, server: Any, engine: Any, batch_file: Path
) -> None:
    result = run("submit", batch_file, "--endpoint", "/v1/completions", url=server.base_url)
    assert result.exit_code == 2
    assert "line 1: The URL provided" in complaint(result)
    assert "/v1/completions" in complaint(result)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--endpoint", "/v1/chat"], "--endpoint is '/v1/chat'; allowed are auto, /v1/chat/compl"),
        (["--metadata", "night"], "--metadata 'night' must be KEY=VALUE"),
        (["--metadata", "=night"], "must be KEY=VALUE"),
        (["--metadata", "a=1", "--metadata", "a=2"], "has the key 'a' twice"),
        (["--metadata", f"a={'x' * 513}"], "the value 513; at most 64 and 512"),
        ([p for i in range(17) for p in ("--metadata", f"{i}=x")], "given 17 times; at most 16"),
        (["--fetch"], "--fetch and -o FILE need each other"),
        (["-o", "out.jsonl"], "--fetch and -o FILE need each other"),
        (["--force"], "belong to --fetch"),
        (["--fetch", "-o", "-", "--errors", "-"], "need a file each"),
        (["--fetch", "-o", "FOLDER/in.jsonl"], "exists already"),
        (["--fetch", "-o", "FOLDER/in.jsonl", "--force"], "it is the batch file itself"),
        (["--fetch", "-o", "FOLDER/none/out.jsonl"], "there is no folder"),
        (["--fetch", "-o", "FOLDER"], "is not a regular file"),
    ],
)
def test_wrong_use_of_submit(
    run: Any, complaint: Any, batch_file: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    content = batch_file.read_bytes()
    # Nobody listens there: nothing of this reaches a server.
    result = run("submit", batch_file, *given, url="http://127.0.0.1:9")
    assert result.exit_code == 2
    assert said in complaint(result)
    assert batch_file.read_bytes() == content


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_file_that_cannot_be_read(run: Any, complaint: Any, tmp_path: Path, name: str) -> None:
    result = run("submit", tmp_path / name, url="http://127.0.0.1:9")
    assert result.exit_code == 2
    assert complaint(result).startswith(str(tmp_path / name))


def test_a_large_file_comes_in_parts(
    run: Any, server: Any, engine: Any, batch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(upload, "PART_BYTES", 64)
    result = run("submit", batch_file, url=server.base_url)
    assert result.exit_code == 0, result.stderr
    batch = server.client.batches.retrieve(result.stdout.strip())
    assert server.client.files.content(batch.input_file_id).read() == batch_file.read_bytes()
    engine.complete(engine.claim())


def test_a_slice_is_a_file_of_its_own() -> None:
    told: list[int] = []
    part = upload.Slice(io.BytesIO(b"0123456789"), 3, 5, told.append)
    assert (part.read(2), part.read(), part.read()) == (b"34", b"567", b"")
    assert told == [5, 8]
    assert (part.seek(0, os.SEEK_END), part.tell(), part.seek(1)) == (5, 5, 1)
    assert part.read(100) == b"4567"
    with pytest.raises(WrongUse, match="became shorter"):
        upload.Slice(io.BytesIO(b"0123"), 3, 5, told.append).read()


def test_a_lost_answer_does_not_make_a_second_batch(
    run: Any, proxy: Any, server: Any, engine: Any, batch_file: Path
) -> None:
    def spoil(method: str, path: str, count: int) -> int | None:
        return 0 if (method, path) == ("POST", "/v1/batches") and count < 2 else None

    before = len(server.http.get("/v1/batches?limit=100").json()["data"])
    with proxy(server, spoil) as between:
        result = run("submit", batch_file, url=between.url)
        assert between.requests["POST", "/v1/batches"] == 3
    assert result.exit_code == 0, result.stderr
    newest = server.http.get("/v1/batches?limit=100").json()["data"]
    assert newest[0]["id"] == result.stdout.strip()
    assert len(newest) == before + 1
    engine.complete(engine.claim())


def test_a_batch_that_may_have_been_made_is_told(
    run: Any, complaint: Any, proxy: Any, server: Any, engine: Any, batch_file: Path
) -> None:
    with proxy(
        server, lambda method, path, _: 0 if path == "/v1/batches" and method == "POST" else None
    ) as between:
        result = run("submit", batch_file, url=between.url)
    assert result.exit_code == 3
    assert "there may be a batch of the file file-" in complaint(result)
    engine.complete(engine.claim())


def test_a_refused_batch_leaves_no_file(
    run: Any, complaint: Any, proxy: Any, server: Any, engine: Any, batch_file: Path
) -> None:
    before = len(server.http.get("/v1/files?purpose=batch").json()["data"])
    with proxy(
        server, lambda method, path, _: 400 if (method, path) == ("POST", "/v1/batches") else None
    ) as between:
        result = run("submit", batch_file, url=between.url)
    assert result.exit_code == 3
    assert "answered 400" in complaint(result)
    assert len(server.http.get("/v1/files?purpose=batch").json()["data"]) == before
