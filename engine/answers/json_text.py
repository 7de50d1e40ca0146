"""Objects as text."""

from __future__ import annotations

import json
from typing import Any


def json_text(body: dict[str, Any]) -> str:
    """`body` as JSON on one line."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
