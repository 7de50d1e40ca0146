"""What compiled kernels take is kept, and found anew after any change that it follows from."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import missing
from trunkline.kernels.gpu.pipeline import Pipeline
from trunkline.kernels.gpu.resources import Resources, cache_folder, digest_of, load, store
from trunkline.kernels.gpu.variant import Variant

FOUND = Resources("copy_bf16", "sm_90", 40, 0, 2048, False)
VARIANT = Variant(
    "copy_bf16", None, {"x": "*bf16", "size": "i32"}, {"block_size": 64, "has_norm": False}
)


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    pipelines = (Pipeline(buffers=3, waits=2), Pipeline(buffers=2, waits=None))
    other = replace(FOUND, target="gfx942", uses_wgmma=True, pipelines=pipelines)
    assert load(tmp_path / "cache", "a") is None
    store(tmp_path / "cache", "a", FOUND)
    store(tmp_path / "cache", "b", other)
    assert load(tmp_path / "cache", "a") == FOUND
    assert load(tmp_path / "cache", "b") == other
    assert load(tmp_path / "cache", "c") is None
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a.json", "b.json"]


def test_the_cache_is_trunklines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE_DIR", str(tmp_path))
    assert cache_folder().parent == tmp_path
    monkeypatch.delenv("TRUNKLINE_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / ".cache" / "trunkline"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-1],
    "begun only": lambda content: content[:70],
    "another number": lambda content: content.replace(b"40", b"41"),
    "no text": lambda content: b"\xff" * len(content),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_counts_as_missing(tmp_path: Path, damage: str) -> None:
    store(tmp_path, "a", FOUND)
    (path,) = tmp_path.iterdir()
    intact = path.read_bytes()
    path.write_bytes(DAMAGES[damage](intact))
    assert path.read_bytes() != intact
    assert load(tmp_path, "a") is None
    store(tmp_path, "a", FOUND)
    assert load(tmp_path, "a") == FOUND


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    (folder / "gpu").mkdir(parents=True)
    (folder / "reference.py").write_text("MASS = 1\n")
    (folder / "gpu" / "copy.py").write_text("def copy(): ...\n")
    return folder


def test_a_digest_follows_from_the_variant(sources: Path) -> None:
    variants = [
        VARIANT,
        replace(VARIANT, name="copy"),
        replace(VARIANT, signature={"x": "*fp32", "size": "i32"}),
        replace(VARIANT, signature={"x": "*bf16", "size": "i32:16"}),
        replace(VARIANT, constexprs={"block_size": 128, "has_norm": False}),
        replace(VARIANT, constexprs={"block_size": 64, "has_norm": None}),
        replace(VARIANT, constexprs={"block_size": 64}),
        replace(VARIANT, num_warps=8),
        replace(VARIANT, num_stages=3),
    ]
    digests = {digest_of(variant, "sm_90", "3.9.0", sources) for variant in variants}
    digests |= {digest_of(VARIANT, "sm_80", "3.9.0", sources)}
    digests |= {digest_of(VARIANT, "sm_90", "3.9.1", sources)}
    assert len(digests) == len(variants) + 2
    again = replace(VARIANT, constexprs=dict(reversed(VARIANT.constexprs.items())))
    assert digest_of(again, "sm_90", "3.9.0", sources) in digests


def test_a_digest_follows_from_all_sources(sources: Path) -> None:
    digests = []

    def take() -> None:
        digests.append(digest_of(VARIANT, "sm_90", "3.9.0", sources))

    take()
    (sources / "reference.py").write_text("MASS = 2\n")
    take()
    (sources / "gpu" / "copy.py").write_text("def copy(): return\n")
    take()
    (sources / "gpu" / "copy.py").rename(sources / "gpu" / "copies.py")
    take()
    (sources / "gpu" / "more.py").write_text("")
    take()
    assert len(set(digests)) == 5
    take()
    assert digests[-1] == digests[-2]


def test_the_sources_are_the_kernels() -> None:
    folder = Path(importlib.import_module("trunkline.kernels").__file__ or "").parent
    default = digest_of(VARIANT, "sm_90", "3.9.0")
    assert default == digest_of(VARIANT, "sm_90", "3.9.0", folder)


@pytest.fixture
def ahead() -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        missing("Triton is not installed")
    return importlib.import_module("trunkline.kernels.gpu.ahead")


@pytest.fixture
def compiled(
    ahead: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    """What has been compiled: for a sham, two variants whose resources are their names' lengths."""
    variants = [VARIANT, replace(VARIANT, name="copy", targets=("sm_80",))]
    done: list[tuple[str, str]] = []

    def compile_variant(variant: Variant, target: str) -> Resources:
        done.append((variant.name, target))
        return Resources(variant.name, target, len(variant.name), 0, 0, False)

    monkeypatch.setenv("TRUNKLINE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ahead, "all_variants", lambda: variants)
    monkeypatch.setattr(ahead, "compile_variant", compile_variant)
    monkeypatch.setattr(ahead, "ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(1))
    return done


PAIRS = [
    ("copy_bf16", "sm_80"),
    ("copy_bf16", "sm_90"),
    ("copy_bf16", "gfx942"),
    ("copy", "sm_80"),
]


def test_only_what_is_missing_is_compiled(
    ahead: ModuleType, compiled: list[tuple[str, str]]
) -> None:
    pairs = ahead.all_pairs()
    found = list(ahead.compile_all(pairs[1:2]))
    assert compiled == PAIRS[1:2]
    rows = list(ahead.compile_all(pairs))
    assert [(row.variant, row.target) for row in rows] == PAIRS
    assert [row.num_registers for row in rows] == [9, 9, 9, 4]
    assert rows[1] == found[0]
    assert compiled == [PAIRS[1], PAIRS[0], *PAIRS[2:]]
    assert list(ahead.compile_all(pairs)) == rows
    assert len(compiled) == 4
    damaged = sorted(cache_folder().iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:-2])
    assert list(ahead.compile_all(pairs)) == rows
    assert len(compiled) == 5
    assert compiled[-1] in PAIRS


def test_another_compiler_compiles_anew(
    ahead: ModuleType, compiled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = ahead.all_pairs()
    list(ahead.compile_all(pairs))
    monkeypatch.setattr(ahead.triton, "__version__", "0.0.1")
    ahead._compiler.cache_clear()
    try:
        list(ahead.compile_all(pairs))
    finally:
        ahead._compiler.cache_clear()
    assert compiled == [*PAIRS, *PAIRS]


def test_the_first_variant_of_each_kernel(
    ahead: ModuleType, compiled: list[tuple[str, str]]
) -> None:
    chosen = ahead.one_of_each_kernel(ahead.all_pairs())
    assert [(variant.name, target) for variant, target in chosen] == PAIRS[:3]
