"""What the lists have in common."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

# The id of the last object of the page before; PostgreSQL cannot look for one with a NUL character.
Cursor = Annotated[str | None, Query(pattern=r"^[^\x00]*$")]
