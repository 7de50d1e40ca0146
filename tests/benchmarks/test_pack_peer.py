"""Wheels packed into parts, and the parts put together on another machine."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from gpu.fatbin import BINARY, ENTRY, MAGIC, SOURCE, containers, for_gpu
from gpu.pack_peer import ARCHIVE, SUMS, WHEELS, is_wanted, pack, split, wheel_of

HEADER_SIZE = 64


def entry(kind: int, gpu: int, payload: bytes) -> bytes:
    return (
        ENTRY.pack(kind, 0x101, HEADER_SIZE, len(payload), gpu).ljust(HEADER_SIZE, b"h") + payload
    )


def container(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return MAGIC + struct.pack("<Q", len(content)) + content


def kept(library: bytes) -> list[list[tuple[int, int]]]:
    return [[(each.kind, each.gpu) for each in entries] for _, _, entries in containers(library)]


SEVERAL = container(
    entry(SOURCE, 80, b"source"), entry(BINARY, 80, b"ampere"), entry(BINARY, 90, b"hopper")
)
LIBRARY = b"code" + SEVERAL + bytes(5) + SEVERAL + b"more"


def test_a_library_keeps_the_kernels_of_one_gpu_in_their_place() -> None:
    trimmed = for_gpu(LIBRARY)
    assert len(trimmed) == len(LIBRARY)
    assert kept(trimmed) == [[(BINARY, 90)], [(BINARY, 90)]]
    assert [start for start, _, _ in containers(trimmed)] == [4, 4 + len(SEVERAL) + 5]
    assert trimmed.count(b"hopper") == 2
    assert b"ampere" not in trimmed
    assert trimmed.startswith(b"code")
    assert trimmed.endswith(b"more")
    assert for_gpu(trimmed) == trimmed


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        pytest.param(
            [entry(SOURCE, 75, b"s"), entry(SOURCE, 80, b"s"), entry(SOURCE, 100, b"s")],
            [(SOURCE, 80)],
            id="the latest source",
        ),
        pytest.param(
            [entry(BINARY, 90, b"a"), entry(BINARY, 90, b"b"), entry(SOURCE, 90, b"s")],
            [(BINARY, 90), (BINARY, 90)],
            id="both binaries",
        ),
        pytest.param(
            [entry(BINARY, 120, b"long"), entry(BINARY, 100, b"s"), entry(SOURCE, 100, b"source")],
            [(BINARY, 100)],
            id="none of use",
        ),
    ],
)
def test_what_stands_in_for_machine_code(
    entries: list[bytes], wanted: list[tuple[int, int]]
) -> None:
    assert kept(for_gpu(container(*entries))) == [wanted]


@pytest.mark.parametrize(
    "library",
    [
        pytest.param(b"nothing", id="no container"),
        pytest.param(MAGIC + struct.pack("<Q", 2**40), id="longer than the file"),
        pytest.param(container(b"x" * HEADER_SIZE), id="no entry"),
        pytest.param(container(entry(BINARY, 90, b"")[:-1]), id="a part of an entry"),
        pytest.param(MAGIC, id="cut short"),
    ],
)
def test_what_only_looks_like_a_container_is_left(library: bytes) -> None:
    assert for_gpu(library) == library


def test_what_is_packed() -> None:
    assert is_wanted("vllm/__init__.py")
    assert is_wanted("vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so")
    assert is_wanted("vllm-0.26.0.dist-info/METADATA")
    assert not is_wanted("vllm/")
    assert not is_wanted("vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so")
    assert not is_wanted("vllm/third_party/deep_gemm/include/cute/arch/mma.hpp")


def test_wheels_are_found_by_their_requirements(tmp_path: Path) -> None:
    assert all(requirement.count("==") == 1 for requirement in WHEELS)
    wheel = tmp_path / "openai_harmony-0.0.8-cp38-abi3-any.whl"
    with pytest.raises(SystemExit, match="0 wheels of openai-harmony"):
        wheel_of("openai-harmony==0.0.8", tmp_path)
    wheel.touch()
    assert wheel_of("openai-harmony==0.0.8", tmp_path) == wheel


@pytest.fixture
def pack_folder(tmp_path: Path) -> Path:
    """Two wheels, packed into several parts."""
    folder = tmp_path / "pack"
    folder.mkdir()
    wheels = [tmp_path / "vllm-1-any.whl", tmp_path / "other-1-any.whl"]
    with zipfile.ZipFile(wheels[0], "w") as wheel:
        wheel.writestr("vllm/__init__.py", "name = 'vllm'\n")
        wheel.writestr("vllm/_C.abi3.so", LIBRARY)
        wheel.writestr("vllm/vllm-rs", b"a server")
    with zipfile.ZipFile(wheels[1], "w") as wheel:
        wheel.writestr("other/data.bin", LIBRARY)
    sizes = pack(wheels, folder / ARCHIVE)
    assert sizes["other-1-any.whl"] == len(LIBRARY)
    size = (folder / ARCHIVE).stat().st_size
    parts = split(folder / ARCHIVE, size // 3 + 1)
    assert [part.name for part in parts] == [f"{ARCHIVE}.0{number}" for number in range(3)]
    assert not (folder / ARCHIVE).exists()
    return folder


def join(benchmarks: Path, pack: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [benchmarks / "gpu" / "join_peer.sh", pack, folder],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def test_parts_that_come_one_at_a_time_are_put_together(
    benchmarks: Path, pack_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "machine"
    for number in range(3):
        arrived = tmp_path / f"call {number}"
        arrived.mkdir()
        for name in (SUMS, f"{ARCHIVE}.0{number}"):
            (arrived / name).write_bytes((pack_folder / name).read_bytes())
        done = join(benchmarks, arrived, folder)
        if number < 2:
            assert (done.returncode, done.stdout) == (75, "")
            assert "is still to come" in done.stderr
    assert done.returncode == 0, done.stderr
    site = Path(done.stdout.strip())
    assert site == folder / "site"
    found = {str(file.relative_to(site)) for file in site.rglob("*") if file.is_file()}
    assert found == {"vllm/__init__.py", "vllm/_C.abi3.so", "other/data.bin"}
    assert (site / "vllm/_C.abi3.so").read_bytes() == for_gpu(LIBRARY)
    assert (site / "other/data.bin").read_bytes() == LIBRARY


def test_a_part_that_was_changed_is_refused(
    benchmarks: Path, pack_folder: Path, tmp_path: Path
) -> None:
    part = pack_folder / f"{ARCHIVE}.01"
    part.write_bytes(part.read_bytes()[::-1])
    done = join(benchmarks, pack_folder, tmp_path / "machine")
    assert done.returncode != 0
    assert done.stdout == ""
    assert f"{ARCHIVE}.01: FAILED" in done.stderr
    assert not (tmp_path / "machine" / "site").exists()
