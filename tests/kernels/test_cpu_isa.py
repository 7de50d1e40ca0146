"""The limit on instruction sets, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trunkline.kernels import native
from trunkline.kernels.cpu_isa import (
    VARIABLE,
    CpuIsa,
    has_avx512_bf16,
    max_cpu_isa,
    multiplies_bfloat16,
)


@pytest.fixture(autouse=True)
def _library_is_looked_for_again() -> Iterator[None]:
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_without_a_limit_the_cpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert max_cpu_isa() is CpuIsa.AVX512_BF16
    assert not has_avx512_bf16()
    assert not multiplies_bfloat16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not has_avx512_bf16()
    assert multiplies_bfloat16()


def test_a_limit_holds_on_a_cpu_that_has_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setenv(VARIABLE, "avx512_bf16")
    assert has_avx512_bf16()
    monkeypatch.setenv(VARIABLE, "avx2")
    assert not has_avx512_bf16()
    assert not multiplies_bfloat16()
    assert native.library() is None
    assert "TRUNKLINE_MAX_CPU_ISA allows no AVX512-BF16 instructions" in caplog.text


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "avx1024")
    with pytest.raises(ValueError, match=r"is 'avx1024'; allowed are avx2, avx512_bf16"):
        max_cpu_isa()
