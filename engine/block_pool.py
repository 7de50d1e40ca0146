"""Pages of the KV cache: which are free, and how many holders each of the others has."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Pages = NDArray[np.int32]


class OutOfPagesError(Exception):
    """More pages were asked for than are free; nothing was taken."""


class PagePool:
    """Reference-counted pages, numbered 0 .. num_pages - 1.

    A page has one holder more for every `retain`; `release` by the last one frees it. Freed pages
    are handed out again last in, first out, and a large request comes out in ascending order, so
    that a long prefix mostly lies on consecutive pages and can be read without a gather.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages is {num_pages}; the KV cache needs at least 1 page")
        self.num_pages = num_pages
        self._holders = np.zeros(num_pages, dtype=np.int32)
        self._free = np.arange(num_pages - 1, -1, -1, dtype=np.int32)  # a stack, top at the end
        self._num_free = num_pages

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def num_held(self) -> int:
        return self.num_pages - self._num_free

    def num_holders(self, page: int) -> int:
        return int(self._holders[page])

    def allocate(self, count: int) -> Pages:
        """Take `count` pages, each with one holder.

        Raises:
            OutOfPagesError: fewer than `count` pages are free.
        """
        if count > self._num_free:
            raise OutOfPagesError(f"{count} pages wanted, {self._num_free} free")
        top = self._num_free
        pages = np.sort(self._free[top - count : top])
        self._num_free = top - count
        self._holders[pages] = 1
        return pages

    def retain(self, pages: Pages) -> None:
        """Add a holder to each of `pages`, which must be distinct and held already."""
        self._holders[pages] += 1

    def release(self, pages: Pages) -> None:
        """Take a holder from each of `pages` (distinct); pages without one become free."""
        self._holders[pages] -= 1
        freed = pages[self._holders[pages] == 0]
        # Descending, so that the next request pops them in ascending order.
        freed = np.sort(freed)[::-1]
        self._free[self._num_free : self._num_free + len(freed)] = freed
        self._num_free += len(freed)

    def check_invariants(self, holdings: Iterable[Pages]) -> None:
        """Raise AssertionError unless `holdings`, all holders' pages, account for every page."""
        counts = np.zeros(self.num_pages, dtype=np.int32)
        for pages in holdings:
            np.add.at(counts, pages, 1)
        assert (counts == self._holders).all()
        free = self._free[: self._num_free]
        assert len(np.unique(free)) == len(free)
        assert (self._holders[free] == 0).all()
        assert int((self._holders == 0).sum()) == self._num_free
