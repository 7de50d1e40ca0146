"""Prints the requirements of a project: `python requirements.py PYPROJECT [EXTRA …]`, one a line.

The images install them in a layer of its own, which stays as it is when only the source changes.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, *extras: str) -> list[str]:
    """The dependencies, and those of `extras`.

    Raises:
        KeyError: there is no such extra.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    lines = requirements(Path(sys.argv[1]), *sys.argv[2:])
    sys.stdout.write("".join(f"{line}\n" for line in lines))
