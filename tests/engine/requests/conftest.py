"""Ways to ask, shared by the tests of request bodies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.parse import parse_request

Refusal = tuple[str, str | None, str | None]
Refuse = Callable[[str, Any], Refusal]


@pytest.fixture
def refusal() -> Refuse:
    """Message, field and code of the error that a body gets."""

    def refuse(endpoint: str, body: Any) -> Refusal:
        with pytest.raises(RequestError) as caught:
            parse_request(endpoint, body)
        error = caught.value
        assert error.status_code == 400
        assert error.as_body() == {
            "error": {
                "message": error.message,
                "type": "invalid_request_error",
                "param": error.param,
                "code": error.code,
            }
        }
        return error.message, error.param, error.code

    return refuse
