"""The variants of the attention kernel that the tuning table can pick."""

from __future__ import annotations

from trunkline.kernels.gpu.attention import attention_kernel
from trunkline.kernels.gpu.tuning import Launch, Tuning, TuningKey, all_rows
from trunkline.kernels.gpu.variant import Variant

# Of what is compiled ahead of time; another page size costs no more registers.
COMPILED_PAGE_SIZE = 16


def variants() -> list[Variant]:
    """Of every row of the tuning table, and of heads that do not fill their row."""
    found = []
    for key, tuning in all_rows():
        if tuning.small is not None:
            large, small = tuning.launches
            found += [
                _variant(key, tuning, large, key.head_dim, False, "large"),
                _variant(key, tuning, small, key.head_dim, False, "small"),
            ]
            continue
        (launch,) = tuning.launches
        found += [_variant(key, tuning, launch, key.head_dim, has_cap) for has_cap in (False, True)]
        if key.head_dim == 128 and key.element_bytes == 2 and not key.is_fp8_cache:
            found += [_variant(key, tuning, launch, head_dim, False) for head_dim in (80, 96)]
    return found


def _variant(
    key: TuningKey,
    tuning: Tuning,
    launch: Launch,
    head_dim: int,
    has_soft_cap: bool,
    tiles: str = "",
) -> Variant:
    dtype = "bf16" if key.element_bytes == 2 else "fp32"
    fp8 = "u8" if tuning.reads_fp8_as_bits else "fp8e4nv"
    cached = fp8 if key.is_fp8_cache else dtype
    strides = ("query_row", "query_head", "page", "slot", "kv_head")
    fp8_name, cap_name = "fp8" * key.is_fp8_cache, "cap" * has_soft_cap
    name = ["attention", dtype, fp8_name, str(head_dim), cap_name, tiles, key.architecture]
    return Variant(
        name="_".join(filter(None, name)),
        kernel=attention_kernel,
        signature={
            **dict.fromkeys(("query", "out"), f"*{dtype}"),
            **dict.fromkeys(("key_cache", "value_cache"), f"*{cached}"),
            **dict.fromkeys(("partial_out", "partial_lse"), "*fp32"),
            **dict.fromkeys(("lists", "page_tables"), "*i32"),
            **dict.fromkeys(("scale", "soft_cap", "value_scale"), "fp32"),
            **dict.fromkeys([f"{name}_stride" for name in strides], "i32:16"),
            **dict.fromkeys(("table_stride", "num_kv_heads", "window"), "i32"),
        },
        constexprs=launch.constexprs(
            tuning.precision, COMPILED_PAGE_SIZE, head_dim, has_soft_cap=has_soft_cap
        ),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        targets=(key.architecture,),
    )
