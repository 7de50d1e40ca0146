"""The fast small operations against the reference."""

from __future__ import annotations

import pytest
import torch

from trunkline.kernels import elementwise, reference

DTYPES = [torch.float32, torch.bfloat16]


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 3e-2


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, atol=tolerance(a.dtype), rtol=tolerance(a.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (3, 4, 16)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(shape)).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)
    before = x.clone()
    close(elementwise.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(5, 64).to(dtype) for _ in range(2))
    weight = torch.randn(64).to(dtype)
    normed, total = elementwise.add_rms_norm(x, residual, weight, 1e-6)
    expected_normed, expected_total = reference.add_rms_norm(x, residual, weight, 1e-6)
    close(normed, expected_normed)
    close(total, expected_total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 40, 64])
def test_rope(dtype: torch.dtype, head_dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, head_dim).to(dtype)
    angles = torch.randn(6, head_dim // 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    both_cos = torch.cat([cos, cos], 1).unsqueeze(1)
    signed_sin = torch.cat([-sin, sin], 1).unsqueeze(1)
    close(elementwise.rope(x, both_cos, signed_sin), reference.rope(x, cos, sin))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(5, 34).to(dtype)
    before = gate_up.clone()
    close(elementwise.silu_mul(gate_up), reference.silu_mul(gate_up))
    assert torch.equal(gate_up, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(6, 9, 16).to(dtype)
    key, value = qkv[:, 3:6], qkv[:, 6:]
    slots = torch.tensor([3, 0, 19, 7, 8, 15])
    caches = [torch.full((5, 4, 3, 16), torch.nan, dtype=dtype) for _ in range(4)]
    elementwise.write_kv(key, value, caches[0], caches[1], slots)
    reference.write_kv(key, value, caches[2], caches[3], slots)
    for fast, expected in ((caches[0], caches[2]), (caches[1], caches[3])):
        assert torch.equal(fast.nan_to_num(9.0), expected.nan_to_num(9.0))
        assert fast.isnan().sum() == (20 - 6) * 3 * 16
