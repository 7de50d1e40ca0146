"""Where the parts' results go."""

from __future__ import annotations

import os
from pathlib import Path

from harness.rows import RESULTS


def results_file(part: str) -> Path:
    """The JSONL file of a part, in the folder that run.sh names."""
    return Path(os.environ.get("OUT", RESULTS)) / f"gpu-{part}.jsonl"
