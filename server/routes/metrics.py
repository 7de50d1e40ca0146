"""The metrics page, for Prometheus. It names no project and asks for no key."""

from __future__ import annotations

from fastapi import APIRouter, Response

from trunkline.server.metrics import CONTENT_TYPE
from trunkline.server.state import StateOf

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def metrics(state: StateOf) -> Response:
    """All metrics in Prometheus's text format; see docs/metrics.md."""
    return Response(state.metrics.page(), media_type=CONTENT_TYPE)
