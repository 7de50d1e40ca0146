"""A file is one idea."""

from __future__ import annotations

from pathlib import Path

MAX_LINES = 400

# Longer files, each with the reason why it is still one idea.
LONGER = {
    "engine/scheduler.py": "one algorithm whose state all of its steps share",
    "tests/engine/answers/test_tool_formats.py": "mostly one table of malformed answers",
    "tests/engine/test_scheduler.py": "one device that knows what is right, and all that uses it",
    "tests/engine/test_token_masks.py": "what a mask has to do with everything else of a step",
    "tests/kernels/gpu/test_attention.py": "every property of one kernel, on the same cases",
}


def test_long_files_are_listed_with_a_reason(python_sources: list[Path], root: Path) -> None:
    longer = {
        str(path.relative_to(root))
        for path in python_sources
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }
    assert longer == set(LONGER)
