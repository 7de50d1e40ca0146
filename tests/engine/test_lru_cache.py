"""Which pages are found again, and which go first."""

from __future__ import annotations

import numpy as np
import pytest

from trunkline.engine.block_pool import PagePool
from trunkline.engine.lru_cache import LruCache

SIZE = 4


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


class Bench:
    """A pool and the cache of its pages."""

    def __init__(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages)
        self.cache = LruCache(self.pool, SIZE)

    def keep(self, prompt: np.ndarray) -> list[int]:
        """Let a sequence compute `prompt` and end; its pages."""
        self.cache.make_room(-(-len(prompt) // SIZE))
        pages = self.pool.allocate(-(-len(prompt) // SIZE))
        self.cache.insert(prompt, pages)
        self.cache.release(pages)
        self.cache.check_invariants()
        return [int(page) for page in pages]

    def found(self, prompt: np.ndarray) -> list[int]:
        return [int(page) for page in self.cache.match(prompt)]


@pytest.fixture
def bench() -> Bench:
    return Bench(6)


def test_whole_pages_are_found_up_to_the_first_that_differs(bench: Bench) -> None:
    prompt = np.arange(12, dtype=np.int32)
    pages = bench.keep(prompt)
    assert bench.found(prompt) == pages
    assert bench.found(np.append(prompt, tokens(99))) == pages
    assert bench.found(prompt[:11]) == pages[:2]
    assert bench.found(prompt[:8]) == pages[:2]
    assert bench.found(prompt[:3]) == []
    other = prompt.copy()
    other[5] = 99
    assert bench.found(other) == pages[:1]
    assert bench.found(prompt[4:]) == [], "a page belongs to what is before it"


def test_what_does_not_fill_a_page_is_not_kept(bench: Bench) -> None:
    prompt = np.arange(10, dtype=np.int32)
    pages = bench.keep(prompt)
    assert bench.found(prompt) == pages[:2]
    assert bench.cache.num_evictable == 2
    assert bench.pool.num_free == 4


def test_no_more_goes_than_has_to_the_oldest_first_and_ends_before_beginnings(
    bench: Bench,
) -> None:
    first, second = np.arange(12, dtype=np.int32), np.arange(100, 108, dtype=np.int32)
    first_pages, second_pages = bench.keep(first), bench.keep(second)
    assert (bench.pool.num_free, bench.cache.num_evictable) == (1, 5)
    bench.cache.make_room(1)
    assert bench.pool.num_free == 1, "there was room"
    bench.cache.make_room(2)
    assert (bench.pool.num_free, bench.cache.num_evictable) == (2, 4)
    assert bench.found(first) == first_pages[:2]
    assert bench.found(second) == second_pages
    bench.cache.make_room(4)
    assert bench.found(first) == []
    assert bench.found(second) == second_pages


def test_what_was_used_again_is_not_the_oldest_and_what_is_in_use_stays(bench: Bench) -> None:
    first, second = np.arange(8, dtype=np.int32), np.arange(100, 108, dtype=np.int32)
    first_pages, second_pages = bench.keep(first), bench.keep(second)
    bench.cache.acquire(bench.cache.match(first))
    assert bench.cache.num_evictable == bench.cache.num_idle(np.array(second_pages)) == 2
    bench.cache.make_room(6)
    assert bench.pool.num_free == 4
    assert bench.found(first) == first_pages
    bench.keep(second)
    bench.cache.release(np.array(first_pages, np.int32))
    bench.cache.check_invariants()
    bench.cache.make_room(4)
    assert bench.found(first) == first_pages
    assert bench.found(second) == []


def test_the_same_content_is_kept_once(bench: Bench) -> None:
    prompt = np.arange(8, dtype=np.int32)
    pages = bench.keep(prompt)
    again = bench.keep(prompt)
    assert bench.found(prompt) == pages != again
    assert bench.pool.num_free == 4
