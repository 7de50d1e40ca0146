"""The workloads in sizes that a device answers in tens of seconds."""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.engine.simulation.workloads import WORKLOADS, WorkItem, make_workload


@dataclass(frozen=True)
class Size:
    """A workload, how many requests of it, and what its lengths are multiplied by."""

    workload: str
    requests: int
    scale: float = 1.0
    kv_tokens: int | None = None  # that the KV cache is limited to; None: what is usual

    @property
    def text(self) -> str:
        scaled = "" if self.scale == 1.0 else f", lengths x {self.scale:g}"
        limited = "" if self.kv_tokens is None else f", a cache of {self.kv_tokens:,} tokens"
        return f"{self.requests} requests{scaled}{limited}"

    @property
    def description(self) -> str:
        return WORKLOADS[self.workload].description

    def shrunk(self) -> Size:
        """A few short requests of the same kind."""
        return Size(self.workload, 8, self.scale * 0.1, self.kv_tokens)

    def make(self) -> list[WorkItem]:
        return make_workload(self.workload, self.requests, scale=self.scale)


def by_workload(*sizes: Size) -> dict[str, Size]:
    return {size.workload: size for size in sizes}


# SmolLM2-135M on two cores.
CPU_SIZES = by_workload(
    Size("W1", 48, 0.3),
    Size("W2", 96, 0.2),
    Size("W3", 40, 0.25),
    Size("W4", 24, 0.1),
    Size("W5", 32, 0.4),
    Size("W6", 96, 0.4),
    Size("W7", 64, 0.2),
    Size("W8", 48, 0.12),
    Size("W9", 32, 0.4),
    Size("W10", 72, 0.35),
    Size("W11", 32, 0.12, kv_tokens=2560),
)

# SmolLM2-135M on two cores, beside other engines. At full length.
COMPARISON_SIZES = by_workload(Size("C1", 128), Size("C2", 128), Size("C3", 64), Size("C4", 64))

# An 8-billion-parameter decoder on one data-centre GPU: 10 to 40 seconds each at the floor.
GPU_SIZES = by_workload(
    Size("W1-16", 1600),
    Size("W1-64", 1600),
    Size("W2", 1968),
    Size("W3", 1200),
    Size("W4", 320),
    Size("W5", 1600),
    Size("W6", 4096),
    Size("W7", 1024),
    Size("W8", 512),
    Size("W9", 1600),
    Size("W10", 3000),
    Size("W11", 320, kv_tokens=120_000),
)

# For Triton's interpreter.
TOY_SIZES = by_workload(Size("W1-4", 4, 0.02))
