"""The workloads of the benchmarks, made from a seed. Lengths are tokens; requests come shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

VOCABULARY = 32_000


@dataclass(frozen=True)
class WorkItem:
    """One request: its prompt, and how many tokens it will generate."""

    prompt: Tokens
    num_output_tokens: int


class _Source:
    """Random tokens and lengths."""

    def __init__(self, seed: int, scale: float) -> None:
        self.rng = np.random.default_rng(seed)
        self._scale = scale

    def tokens(self, count: float) -> Tokens:
        length = max(round(count * self._scale), 1)
        return self.rng.integers(0, VOCABULARY, length, dtype=np.int32)

    def length(self, count: float) -> int:
        return max(round(count * self._scale), 1)

    def lognormal(self, low: float, high: float) -> float:
        """A length whose middle two thirds lie between `low` and `high`."""
        mean, sigma = (np.log(low) + np.log(high)) / 2, (np.log(high) - np.log(low)) / 2
        return float(self.rng.lognormal(mean, sigma))


def _groups(
    source: _Source, count: int, size: int, prefix: float, own: float, output: float
) -> Iterator[WorkItem]:
    """`count` requests in groups of `size` that share a prefix."""
    shared = source.tokens(prefix)
    for i in range(count):
        if i % size == 0:
            shared = source.tokens(prefix)
        yield WorkItem(np.concatenate([shared, source.tokens(own)]), source.length(output))


def _grouped(
    prefix: float, own: float, output: float, size: int
) -> Callable[[_Source, int], Iterator[WorkItem]]:
    return lambda source, count: _groups(source, count, size, prefix, own, output)


def _w2(source: _Source, count: int) -> Iterator[WorkItem]:
    return _groups(source, count, 246, 1500, 150, 1)


def _w3(source: _Source, count: int) -> Iterator[WorkItem]:
    made = 0
    while made < count:
        document = source.tokens(source.lognormal(1500, 2500))
        questions = min(int(source.rng.zipf(2.0)), 200, count - made)
        for _ in range(questions):
            own = source.tokens(source.lognormal(20, 60))
            output = source.length(source.lognormal(40, 90))
            yield WorkItem(np.concatenate([document, own]), output)
        made += questions


def _w4(source: _Source, count: int) -> Iterator[WorkItem]:
    return _groups(source, count, 8, 8000, 60, 120)


def _w5(source: _Source, count: int) -> Iterator[WorkItem]:
    rubric, question = source.tokens(900), source.tokens(300)
    for i in range(count):
        if i % 4 == 0:
            question = source.tokens(300)
        yield WorkItem(np.concatenate([rubric, question, source.tokens(400)]), source.length(150))


def _w6(source: _Source, count: int) -> Iterator[WorkItem]:
    instruction = source.tokens(400)
    fields = [source.tokens(30) for _ in range(40)]
    for _ in range(count):
        chosen = [fields[i] for i in sorted(source.rng.integers(0, len(fields), 2))]
        output = source.length(int(source.rng.integers(3, 21)))
        yield WorkItem(np.concatenate([instruction, *chosen, source.tokens(120)]), output)


def _w7(source: _Source, count: int) -> Iterator[WorkItem]:
    prompt = source.tokens(600)
    for i in range(count):
        if i % 64 == 0:
            prompt = source.tokens(600)
        yield WorkItem(prompt, source.length(int(source.rng.integers(64, 513))))


def _w8(source: _Source, count: int) -> Iterator[WorkItem]:
    yield from _groups(source, count // 2, 16, 2000, 200, 16)
    yield from _groups(source, count - count // 2, 16, 200, 50, 1000)


def _w9(source: _Source, count: int) -> Iterator[WorkItem]:
    for _ in range(count):
        prompt = source.tokens(source.lognormal(200, 1200))
        yield WorkItem(prompt, source.length(source.lognormal(60, 300)))


def _w10(source: _Source, count: int) -> Iterator[WorkItem]:
    system = source.tokens(600)
    task = document = system[:0]
    for i in range(count):
        if i % 150 == 0:
            task = source.tokens(300)
        if i % 3 == 0:
            document = source.tokens(200)
        parts = [system, task, document, source.tokens(30)]
        yield WorkItem(np.concatenate(parts), source.length(60))


def _w11(source: _Source, count: int) -> Iterator[WorkItem]:
    """Few requests on each of many long prefixes, one after the other: LRU always misses."""
    prefixes = [source.tokens(6000) for _ in range(max(count // 8, 1))]
    for i in range(count):
        own = source.tokens(100)
        yield WorkItem(np.concatenate([prefixes[i % len(prefixes)], own]), source.length(60))


@dataclass(frozen=True)
class Workload:
    """A way to make requests."""

    description: str
    make: Callable[[_Source, int], Iterator[WorkItem]]
    is_shuffled: bool = True


WORKLOADS = {
    **{
        f"W1-{group}": Workload(
            f"2000/200/100 in groups of {group}", _grouped(2000, 200, 100, group)
        )
        for group in (1, 4, 16, 64, 256)
    },
    "W2": Workload("five-shot choice: 1500/150/1 in groups of 246", _w2),
    "W3": Workload("search snippets: log-normal documents, Zipf questions", _w3),
    "W4": Workload("long documents: 8000/60/120 in groups of 8", _w4),
    "W5": Workload("judge: rubric 900, question 300 of 4 answers of 400, output 150", _w5),
    "W6": Workload("table rows: instruction 400, repeated fields, output 3 to 20", _w6),
    "W7": Workload("self-consistency: 64 answers up to 512 to each prompt of 600", _w7),
    "W8": Workload("half 2000/200/16, half 200/50/1000", _w8),
    "W9": Workload("nothing shared, log-normal lengths", _w9),
    "W10": Workload("hierarchy 600, 300, 200, question of 30", _w10),
    "W11": Workload("prefixes of 6000 in turn, more than fit", _w11, is_shuffled=False),
    # Beside other engines on CPUs, where 2000 tokens of prefix would take too long.
    "C1": Workload("800/80/32 in groups of 16", _grouped(800, 80, 32, 16)),
    "C2": Workload("1500/50/16 in groups of 64", _grouped(1500, 50, 16, 64)),
    "C3": Workload("nothing shared, 500/32", _grouped(450, 50, 32, 1)),
    "C4": Workload("nothing shared, 64/256", _grouped(32, 32, 256, 1)),
}
WORKLOADS["W1"] = WORKLOADS["W1-16"]


def make_workload(name: str, count: int, seed: int = 0, scale: float = 1.0) -> list[WorkItem]:
    """The requests of a workload.

    Args:
        name: a key of `WORKLOADS`.
        count: requests.
        scale: all lengths are multiplied by it.
    """
    workload = WORKLOADS[name]
    source = _Source(seed, scale)
    items = list(workload.make(source, count))
    if workload.is_shuffled:
        source.rng.shuffle(items)
    return items
