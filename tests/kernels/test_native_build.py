"""How the compiled CPU kernels are built: here of other sources, so on any CPU."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tests.support import HANG_SECONDS, missing
from trunkline.kernels import native
from trunkline.kernels.cpu_isa import VARIABLE
from trunkline.kernels.native import NativeUnavailableError


@pytest.fixture(autouse=True)
def _library_is_looked_for_again() -> Iterator[None]:
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the sources, which need no instructions that a CPU may lack."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(native, "has_avx512_bf16", lambda: True)
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.cpp").write_text('extern "C" int answer() { return 41; }\n')
    monkeypatch.setattr(native, "SOURCE_FOLDER", folder)
    return folder


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What the compiler, which there must be, has been asked for."""
    if not any(map(shutil.which, native.COMPILERS)):
        missing("there is no C++ compiler")
    made: list[Path] = []
    compile_it = native._compile

    def counted(compiler: str, path: Path) -> None:
        made.append(path)
        compile_it(compiler, path)

    monkeypatch.setattr(native, "_compile", counted)
    return made


def answer(folder: Path) -> int:
    found: int = native.build(folder)._loaded["answer"]()
    return found


def test_is_built_once(tmp_path: Path, compilations: list[Path]) -> None:
    assert [answer(tmp_path / "kernels") for _ in range(2)] == [41, 41]
    assert list((tmp_path / "kernels").iterdir()) == compilations
    assert len(compilations) == 1


def test_is_built_anew_after_every_change(
    tmp_path: Path, sources: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(tmp_path / "kernels") == 41
    (sources / "answer.cpp").write_text(
        '#include "more.h"\nextern "C" int answer() { return 41 + MORE; }\n'
    )
    (sources / "more.h").write_text("#define MORE 1\n")
    assert answer(tmp_path / "kernels") == 42
    (sources / "more.h").write_text("#define MORE 2\n")
    assert answer(tmp_path / "kernels") == 43
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-UMORE"))
    assert answer(tmp_path / "kernels") == 43
    assert len(set(compilations)) == 4


def test_no_compiler_is_logged_once_and_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRUNKLINE_CACHE_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert native.library() is None
        assert native.library() is None
    assert len(caplog.records) == 1
    assert "slower" in caplog.text
    assert "no C++ compiler is installed" in caplog.text


def test_a_cpu_without_the_instructions_gets_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "has_avx512_bf16", lambda: False)
    with pytest.raises(NativeUnavailableError, match="the CPU has no AVX512-BF16 instructions"):
        native.build(tmp_path / "kernels")
    assert not (tmp_path / "kernels").exists()


def test_a_failing_compiler_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:/bin:/usr/bin")
    with pytest.raises(NativeUnavailableError, match="no such luck"):
        native.build(tmp_path / "kernels")
    assert list((tmp_path / "kernels").iterdir()) == []


def test_two_build_at_once(
    tmp_path: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither sees the library before each of them has begun to compile it."""
    both_have_begun = Barrier(2)
    compile_it = native._compile

    def together(compiler: str, path: Path) -> None:
        both_have_begun.wait(HANG_SECONDS)
        compile_it(compiler, path)

    monkeypatch.setattr(native, "_compile", together)
    with ThreadPoolExecutor(2) as executor:
        found = list(executor.map(answer, [tmp_path / "kernels"] * 2))
    assert found == [41, 41]
    assert len(compilations) == 2
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".so"]
