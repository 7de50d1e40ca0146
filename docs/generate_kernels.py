"""Makes kernels.md: compiles every GPU kernel for every target. No GPU is needed.

Run as `python docs/generate_kernels.py` after a change of a kernel; it takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import triton

from trunkline.kernels.gpu.ahead import Resources, all_pairs, compile_all

HERE = Path(__file__).parent

HEAD = """\
# GPU kernels

<!-- Made by docs/generate_kernels.py; a test compares its rows with the code. -->

Every variant of every Triton kernel, compiled ahead of time for each target it is for: `sm_80`
(A100 and its like), `sm_90` (H100, H200) and `gfx942` (MI300). The figures are the compiler's own,
here Triton {version}; other versions give others. A test compiles them all and fails if one spills
registers or takes more shared memory than the smallest device of its class has.

These are not speeds: none was measured for this table.

- *registers*: of a thread, at most 255 on CUDA devices, 512 on MI300.
- *spilled*: bytes of a thread's registers that the compiler keeps in memory.
- *shared*: bytes of shared memory (LDS) of a program.
- *wgmma*: whether Hopper's matrix instructions for whole warp groups are used.

| variant | target | registers | spilled | shared | wgmma |
|---|---|--:|--:|--:|---|
"""


def kernels_page(rows: Iterable[Resources]) -> str:
    """The text of kernels.md."""
    return HEAD.format(version=triton.__version__) + "".join(map(_row, rows))


def _row(row: Resources) -> str:
    cells = (
        f"`{row.variant}`",
        f"`{row.target}`",
        f"{row.num_registers}",
        f"{row.spilled_bytes}",
        f"{row.shared_bytes:,}",
        "yes" if row.uses_wgmma else "",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    page = kernels_page(compile_all(all_pairs()))
    (HERE / "kernels.md").write_text(page, encoding="utf-8")
