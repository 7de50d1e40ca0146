"""How the dashboard's files are served."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/dashboard/", "text/html; charset=utf-8"),
        ("/dashboard/main.js", "text/javascript; charset=utf-8"),
        ("/dashboard/views/batch.js", "text/javascript; charset=utf-8"),
        ("/dashboard/theme.css", "text/css; charset=utf-8"),
        ("/dashboard/icon.svg", "image/svg+xml"),
    ],
)
def test_how_files_are_served(server: Any, path: str, content_type: str) -> None:
    reply = server.http.get(path)
    assert reply.headers["content-type"] == content_type
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-cache"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    again = server.http.get(path, headers={"if-none-match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == policy
    assert server.http.head(path).headers["content-length"] == str(len(reply.content))


def test_the_bare_path_leads_to_the_folder(server: Any) -> None:
    reply = server.http.get("/dashboard")
    assert (reply.status_code, reply.headers["location"]) == (307, "dashboard/")
    for path in ("/dashboard/nothing.js", "/dashboard/views", "/dashboard/%2e%2e/app.py"):
        assert server.http.get(path).status_code == 404
