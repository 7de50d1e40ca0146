"""The dashboard's files, as they are. What they show they ask the API for."""

from __future__ import annotations

import posixpath
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "dashboard"

# Said here, since what the system's own table of types says differs between machines.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    # Nothing from elsewhere, nothing inline, and no text that becomes markup.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # Kept, and asked about each time, so that an upgraded server is not met by its former pages.
    "cache-control": "no-cache",
}

INDEX = "index.html"

_files = StaticFiles(directory=FOLDER)


@router.api_route("/dashboard", methods=["GET", "HEAD"])
def dashboard() -> RedirectResponse:
    """To the folder, so that the page's relative links hold; below a proxy's prefix too."""
    return RedirectResponse("dashboard/", headers={"cache-control": "no-cache"})


@router.api_route("/dashboard/{path:path}", methods=["GET", "HEAD"])
async def dashboard_file(request: Request, path: str) -> Response:
    """A file of the dashboard."""
    name = posixpath.normpath(path or INDEX)
    media_type = TYPES.get(Path(name).suffix)
    if media_type is None:
        raise HTTPException(404)
    response = await _files.get_response(name, request.scope)
    for header, value in HEADERS.items():
        response.headers[header] = value
    if response.status_code == 200:
        response.headers["content-type"] = media_type
    return response
