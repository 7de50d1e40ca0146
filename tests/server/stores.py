"""On which stores a test runs.

By itself on SQLite in the quick run, on the others in the full run too. What the others may do in
another way, and each route once, is marked to run on all of them always.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.grids import slow

STORES = ("sqlite", "postgres", "postgres+s3")
DATABASES = ("sqlite", "postgres")

# For tests that take the fixture `server`.
every_store = pytest.mark.parametrize("server", STORES, indirect=True)
# For tests that take `make_server`, `database` or `database_url`.
every_database = pytest.mark.parametrize("empty_database_url", DATABASES, indirect=True)
on_sqlite = pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)


def in_the_full_run(kinds: Iterable[str]) -> list[Any]:
    """Parameters of a fixture: the first in every run, the others in the full one."""
    first, *others = kinds
    return [first, *slow(*others)]
