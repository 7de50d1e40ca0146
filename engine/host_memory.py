"""The memory that this process may still take on its host: what is free, or a container's limit."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path("/")


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that the process can allocate without swapping.

    The kernel's own estimate (`MemAvailable`), which counts the page cache as the reclaimable
    memory that it is, or what a control group above the process leaves, whichever is less. Without
    `/proc`, the free pages.

    Args:
        root: holds `proc` and `sys`; another folder for tests.
    """
    return max(min([_meminfo_bytes(root), *_bytes_left_by_groups(root)]), 0)


def _meminfo_bytes(root: Path) -> int:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bytes_left_by_groups(root: Path) -> list[int]:
    """Bytes below the limits of the process's control groups, of either version."""
    found: list[int | None] = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A limit holds for all groups below it. A path may be the host's, and not be seen in here.
        group = top / path.lstrip("/")
        folders = [group, *group.parents]
        found += [_left(folder, *names) for folder in folders[: folders.index(top) + 1]]
    return [left for left in found if left is not None]


def _left(group: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> int | None:
    """Bytes below the limit of a control group, or None where it has none."""
    limit, usage = (_number(group / name) for name in (limit_name, usage_name))
    if limit is None or usage is None:
        return None
    stat = dict(line.split() for line in _lines(group / "memory.stat"))
    return limit - usage + int(stat.get(reclaimable_name, 0))


def _number(path: Path) -> int | None:
    """A file's number; None for a missing file, and for "max"."""
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
