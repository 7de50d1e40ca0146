"""An installation with the small model, one for each module of tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.braking import Brake
from tests.e2e.small_engine import small_engine


@pytest.fixture(scope="module")
def site_brake(shared_installation: Any) -> Brake:
    return Brake(shared_installation.folder / "brake")


@pytest.fixture(scope="module")
def site(shared_installation: Any, site_brake: Brake) -> Any:
    shared_installation.environment |= site_brake.environment
    shared_installation.start(*small_engine())
    return shared_installation


@pytest.fixture
def brake(site_brake: Brake) -> Iterator[Brake]:
    """Holds the site's engine when a test says so, until its end."""
    yield site_brake
    site_brake.release()


@pytest.fixture
def client(site: Any) -> Iterator[openai.OpenAI]:
    with site.client.with_options(max_retries=0, timeout=240) as made:
        yield made
