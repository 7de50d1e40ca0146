"""The parts of a run: what each is given, and where its measurements are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One measurement of a part.

    Attributes:
        name: unique in its part.
        measure: does it, and gives its records as they become known.
        seconds: gives what it is expected to take, when it is its turn. It is left out when the
            part has fewer left.
    """

    name: str
    measure: Callable[[], Iterable[Record]]
    seconds: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True)
class Part:
    """Measurements that share a file and a budget.

    The module has `cases() -> Iterator[Case]`, the most telling first and always in the same order,
    and `line(record) -> str`, which renders a record of its file. It is imported when the part
    begins, so that one part's missing package does not end another.
    """

    name: str
    module: str
    seconds: float  # from its begin to its end, processes that broke off included

    @property
    def budget(self) -> float:
        """Seconds; SECONDS_PER_PART stands for every part's own."""
        return float(os.environ.get("SECONDS_PER_PART", self.seconds))


# In the order in which they run.
PARTS = {
    part.name: part
    for part in (
        Part("smoke", "gpu.smoke", 60),
        Part("kernels", "gpu.check_kernels", 60),
        Part("kernel-bench", "gpu.time_kernels", 90),
        Part("end-to-end", "gpu.end_to_end", 180),
        Part("profile", "gpu.profile_step", 60),
        Part("equality", "gpu.check_equality", 60),
        Part("peer", "gpu.peer", 560),
    )
}
# Has an engine of its own in a process of its own, and takes all the time that a run has.
BY_NAME_ONLY = ("peer",)
