"""`trunkline fetch` against a live server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# What a client sees of a server is the same on every database.
pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True)


def test_fetch_when_there_is_nothing_yet(
    run: Any, complaint: Any, server: Any, engine: Any, batch_file: Path, tmp_path: Path
) -> None:
    batch = server.create(batch_file.read_bytes())
    claim = engine.claim()
    engine.answer(claim, limit=2)
    output = tmp_path / "out.jsonl"
    result = run("fetch", batch.id, "-o", output, url=server.base_url)
    assert result.exit_code == 1
    assert "has not ended (in_progress, 2 of 5 lines done)" in complaint(result)
    assert not output.exists()
    engine.complete(claim)


def test_fetch_does_not_overwrite(
    run: Any,
    complaint: Any,
    custom_ids: Any,
    server: Any,
    engine: Any,
    batch_file: Path,
    tmp_path: Path,
) -> None:
    batch = server.create(batch_file.read_bytes())
    engine.complete(engine.claim(), failing={"request-2"})
    server.wait_for_end(batch.id)
    output = tmp_path / "out.jsonl"
    output.write_text("precious")
    result = run("fetch", batch.id, "-o", output, url=server.base_url)
    assert (result.exit_code, output.read_text()) == (2, "precious")
    assert "exists already" in complaint(result)
    result = run("fetch", batch.id, "-o", output, "--force", url=server.base_url)
    assert result.exit_code == 0
    assert custom_ids(output) == ["request-0", "request-1", "request-3", "request-4"]
    assert output.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert "4 lines fetched; 1 of 5 have no answer" in result.stderr
    result = run("fetch", batch.id, "-o", "-", url=server.base_url)
    assert result.stdout == output.read_text()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_fetch_when_every_line_failed(
    run: Any,
    complaint: Any,
    custom_ids: Any,
    server: Any,
    engine: Any,
    batch_file: Path,
    tmp_path: Path,
) -> None:
    batch = server.create(batch_file.read_bytes())
    engine.complete(engine.claim(), failing={f"request-{i}" for i in range(5)})
    server.wait_for_end(batch.id)
    output, errors = tmp_path / "out.jsonl", tmp_path / "err.jsonl"
    result = run("fetch", batch.id, "-o", output, "--errors", errors, url=server.base_url)
    assert result.exit_code == 1
    assert "is completed without a single answer" in complaint(result)
    assert len(custom_ids(errors)) == 5
    assert not output.exists()


def test_a_download_that_breaks_off_starts_again(
    run: Any,
    custom_ids: Any,
    proxy: Any,
    server: Any,
    engine: Any,
    batch_file: Path,
    tmp_path: Path,
) -> None:
    batch = server.create(batch_file.read_bytes())
    engine.complete(engine.claim())
    server.wait_for_end(batch.id)
    output = tmp_path / "out.jsonl"
    with proxy(
        server, lambda _, path, count: 0 if path.endswith("/content") and count < 2 else None
    ) as between:
        result = run("fetch", batch.id, "-o", output, url=between.url)
    assert result.exit_code == 0
    assert len(custom_ids(output)) == 5


def test_partial_fetches_add_up(
    run: Any,
    complaint: Any,
    custom_ids: Any,
    server: Any,
    engine: Any,
    batch_file: Path,
    tmp_path: Path,
) -> None:
    batch = server.create(batch_file.read_bytes())
    claim = engine.claim()
    engine.answer(claim, limit=2, failing={"request-1"})
    output, errors = tmp_path / "out.jsonl", tmp_path / "err.jsonl"
    asked = ("fetch", batch.id, "-o", output, "--errors", errors, "--partial")
    result = run(*asked, url=server.base_url)
    assert result.exit_code == 0
    assert "2 new lines, the batch goes on" in result.stderr
    assert (custom_ids(output), custom_ids(errors)) == (["request-0"], ["request-1"])
    assert "0 new lines, the batch goes on" in run(*asked, url=server.base_url).stderr
    # A run that was killed in the middle of a line.
    with output.open("a") as file:
        file.write('{"id": "batch_req')
    engine.complete(claim)
    server.wait_for_end(batch.id)
    assert "3 new lines, and the batch has ended" in run(*asked, url=server.base_url).stderr
    assert sorted(custom_ids(output)) == ["request-0", "request-2", "request-3", "request-4"]
    assert custom_ids(errors) == ["request-1"]
    assert "0 new lines, and the batch has ended" in run(*asked, url=server.base_url).stderr
    result = run("fetch", batch.id, "-o", "-", "--partial", url=server.base_url)
    assert sorted(result.stdout.splitlines()) == sorted(output.read_text().splitlines())
    other = server.create(batch_file.read_bytes())
    result = run("fetch", other.id, "-o", output, "--partial", url=server.base_url)
    assert result.exit_code == 2
    assert f"holds the output of {batch.id}" in complaint(result)
    result = run("fetch", other.id, "-o", output, "--partial", "--force", url=server.base_url)
    assert (result.exit_code, output.read_bytes()) == (0, b"")
    engine.complete(engine.claim())
    server.wait_for_end(other.id)
    run("fetch", other.id, "-o", output, "--force", url=server.base_url)
    assert len(custom_ids(output)) == 5
    assert not list(tmp_path.glob("out.jsonl.partial"))


def test_a_partial_fetch_leaves_a_strange_file_alone(
    run: Any, complaint: Any, server: Any, engine: Any, batch_file: Path, tmp_path: Path
) -> None:
    batch = server.create(batch_file.read_bytes())
    engine.answer(claim := engine.claim(), limit=2)
    output, state = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    asked = ("fetch", batch.id, "-o", output, "--partial")
    output.write_text("precious")
    assert "exists already" in complaint(run(*asked, url=server.base_url))
    output.unlink()
    run(*asked, url=server.base_url)
    content = output.read_bytes()
    output.write_bytes(content[:-1])
    assert "has become shorter" in complaint(run(*asked, url=server.base_url))
    output.write_bytes(content)
    state.write_text("{}")
    assert "does not say how far" in complaint(run(*asked, url=server.base_url))
    assert output.read_bytes() == content
    engine.complete(claim)


def test_a_partial_fetch_that_breaks_off_changes_nothing(
    run: Any, complaint: Any, proxy: Any, server: Any, engine: Any, batch_file: Path, tmp_path: Path
) -> None:
    batch = server.create(batch_file.read_bytes())
    engine.answer(claim := engine.claim(), limit=2)
    output = tmp_path / "out.jsonl"
    asked = ("fetch", batch.id, "-o", output, "--partial")
    run(*asked, url=server.base_url)
    content = output.read_bytes()
    engine.complete(claim)
    with proxy(server, lambda _, path, __: 0 if path.endswith("/output") else None) as between:
        result = run(*asked, url=between.url)
    assert result.exit_code == 3
    assert "was lost" in complaint(result)
    assert output.read_bytes() == content
