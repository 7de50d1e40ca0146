"""An installation with the default model, one for each module of tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.endpoints.asking import EXACT


@pytest.fixture(scope="module")
def site(shared_installation: Any) -> Any:
    shared_installation.start(*EXACT)
    return shared_installation


@pytest.fixture
def client(site: Any) -> Iterator[openai.OpenAI]:
    with site.client.with_options(max_retries=0, timeout=120) as made:
        yield made
