"""The memory that is available, as the files of Linux tell it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from trunkline.engine.host_memory import available_bytes

MIB = 2**20
MEMINFO = """\
MemTotal:       24000000 kB
MemFree:          512000 kB
MemAvailable:   20480000 kB
Cached:         19000000 kB
"""
AVAILABLE = 20_480_000 * 1024

MakeHost = Callable[..., Path]


@pytest.fixture
def make_host(tmp_path: Path) -> MakeHost:
    """Makes the files of a host: its `/proc`, and files of control groups by path."""

    def make(cgroup: str = "", groups: Mapping[str, object] | None = None) -> Path:
        contents = {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup}
        contents |= {f"sys/fs/cgroup/{path}": f"{text}\n" for path, text in (groups or {}).items()}
        for path, text in contents.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return make


def test_the_page_cache_counts_as_available(make_host: MakeHost) -> None:
    assert available_bytes(make_host()) == AVAILABLE


def test_a_limit_of_the_process_own_group(make_host: MakeHost) -> None:
    host = make_host(
        "0::/a/b\n",
        {
            "a/b/memory.max": 900 * MIB,
            "a/b/memory.current": 500 * MIB,
            "a/b/memory.stat": f"anon {300 * MIB}\ninactive_file {150 * MIB}",
        },
    )
    assert available_bytes(host) == 550 * MIB


def test_the_tightest_group_above_counts(make_host: MakeHost) -> None:
    host = make_host(
        "0::/a/b\n",
        {
            "a/b/memory.max": "max",
            "a/b/memory.current": 100 * MIB,
            "a/memory.max": 800 * MIB,
            "a/memory.current": 300 * MIB,
            "memory.max": 700 * MIB,
            "memory.current": 100 * MIB,
        },
    )
    assert available_bytes(host) == 500 * MIB


def test_a_group_of_the_first_version(make_host: MakeHost) -> None:
    host = make_host(
        "5:cpu,cpuacct:/x\n4:memory:/job\n0::/job\n",
        {
            "memory/job/memory.limit_in_bytes": 600 * MIB,
            "memory/job/memory.usage_in_bytes": 200 * MIB,
            "memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MIB}",
        },
    )
    assert available_bytes(host) == 450 * MIB


def test_a_container_that_does_not_see_its_path(make_host: MakeHost) -> None:
    host = make_host(
        "4:memory:/docker/0123\n",
        {"memory/memory.limit_in_bytes": 300 * MIB, "memory/memory.usage_in_bytes": 100 * MIB},
    )
    assert available_bytes(host) == 200 * MIB


def test_a_limit_above_the_memory_and_one_that_is_passed(make_host: MakeHost) -> None:
    files = {"memory.max": 2**50, "memory.current": 0}
    assert available_bytes(make_host("0::/\n", files)) == AVAILABLE
    files = {"memory.max": 10 * MIB, "memory.current": 20 * MIB}
    assert available_bytes(make_host("0::/\n", files)) == 0


def test_without_proc_the_free_pages(tmp_path: Path) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes(tmp_path) <= total
