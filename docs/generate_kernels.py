"""Makes kernels.md: compiles every GPU kernel for every target. No GPU is needed.

Run as `python docs/generate_kernels.py` after a change of a kernel; it takes minutes. With another
Triton than that of the tests, `python docs/generate_kernels.py --page kernels-triton-3.6.md` makes
the page for that one; `benchmarks/gpu/make_environment.sh` makes an environment for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import triton

from trunkline.kernels.gpu.ahead import Resources, all_pairs, compile_all

HERE = Path(__file__).parent
TESTED_PAGE = "kernels.md"
OTHER_PAGE = "kernels-triton-3.6.md"

HEAD = """\
# {title}

<!-- Made by docs/generate_kernels.py; {made} -->

Every variant of every Triton kernel, compiled ahead of time for each target it is for: `sm_80`
(A100 and its like), `sm_90` (H100, H200) and `gfx942` (MI300). The figures are the compiler's own,
here Triton {version}; other versions give others. {tests}

These are not speeds: none was measured for this table.

- *registers*: of a thread, at most 255 on CUDA devices, 512 on MI300.
- *spilled*: bytes of a thread's registers that the compiler keeps in memory.
- *shared*: bytes of shared memory (LDS) of a program.
- *wgmma*: whether Hopper's matrix instructions for whole warp groups are used.
- *buffers*: blocks of keys and values that the attention kernel has a place for, for each kind of
  tile from the largest on: with two, one is loaded while the other is computed with.
- *under way*: asynchronous copies that are not waited for while a block is computed, two for each
  block (MI300 has none: the next block is loaded to registers).

| variant | target | registers | spilled | shared | wgmma | buffers | under way |
|---|---|--:|--:|--:|---|---|---|
"""
TESTED = {
    "title": "GPU kernels",
    "made": "a test compares its rows with the code.",
    "tests": f"""A test compiles them all and fails if one spills
registers or takes more shared memory than the smallest device of its class has (one has 8 bytes on
the stack: float32 with heads of 256 on `sm_90`), or if a tile of the attention kernel has no second
buffer for its keys and values. Those of an older Triton are in [{OTHER_PAGE}]({OTHER_PAGE}).""",
}
OTHER = {
    "title": "GPU kernels under an older Triton",
    "made": "no test makes it anew.",
    "tests": f"[{TESTED_PAGE}]({TESTED_PAGE}) has those of the version\nthat tests compile with.",
}


def kernels_page(rows: Iterable[Resources], words: dict[str, str]) -> str:
    """The text of a page."""
    return HEAD.format(version=triton.__version__, **words) + "".join(map(_row, rows))


def _row(row: Resources) -> str:
    waits = [pipeline.waits for pipeline in row.pipelines if pipeline.waits is not None]
    cells = (
        f"`{row.variant}`",
        f"`{row.target}`",
        f"{row.num_registers}",
        f"{row.spilled_bytes}",
        f"{row.shared_bytes:,}",
        "yes" if row.uses_wgmma else "",
        ", ".join(str(pipeline.buffers) for pipeline in row.pipelines),
        ", ".join(map(str, waits)),
    )
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", choices=(TESTED_PAGE, OTHER_PAGE), default=TESTED_PAGE)
    page = parser.parse_args().page
    text = kernels_page(compile_all(all_pairs()), TESTED if page == TESTED_PAGE else OTHER)
    (HERE / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
