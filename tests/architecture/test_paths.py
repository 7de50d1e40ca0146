"""Nothing in the tree depends on the machine where it was written."""

from __future__ import annotations

import re
from pathlib import Path

# Written in pieces, so that this file does not find itself.
PERSONAL_PATH = re.compile(r"(?<![\w.\-/$])/" + r"(?:work|root|Users|home)/[\w.-]+")

# The home of the user that the images run as.
ALLOWED = frozenset({"/home/trunkline"})


def test_no_path_of_one_machine(texts: list[Path], root: Path) -> None:
    found = {
        f"{path.relative_to(root)}: {match}"
        for path in texts
        for match in PERSONAL_PATH.findall(path.read_text(encoding="utf-8"))
        if match not in ALLOWED
    }
    assert found == set()


def test_links_within_the_tree_are_relative(root: Path) -> None:
    links = [path for path in (root / "src" / "trunkline").iterdir() if path.is_symlink()]
    assert {path.name for path in links} == {"server", "store", "engine", "kernels", "migrations"}
    for link in links:
        assert not link.readlink().is_absolute()
        assert link.resolve() == root / link.name
