"""Live figures: what an engine tells of itself."""

from __future__ import annotations

import pytest

from trunkline.engine.answering import Counts
from trunkline.engine.figures import LiveFigures
from trunkline.server.metric_table import ENGINE_FIGURES
from trunkline.store.records import Outcome


class Engine:
    """What the figures are read from."""

    def __init__(self) -> None:
        self.num_computed_prompt_tokens = self.num_output_tokens = 0

    def counts(self) -> Counts:
        return Counts(
            num_running=3,
            num_waiting=4,
            num_steps=0,
            num_computed_prompt_tokens=self.num_computed_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            kv_pages_in_use=5,
            kv_pages=6,
        )


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_the_server_shows_every_figure(engine: Engine) -> None:
    assert set(LiveFigures(engine.counts, 0.0).read(1.0)) == set(ENGINE_FIGURES.values())


def test_rates_are_of_the_time_since_the_last_look(engine: Engine) -> None:
    figures = LiveFigures(engine.counts, 100.0)
    for _ in range(4):
        figures.stepped(0.25)
    engine.num_computed_prompt_tokens, engine.num_output_tokens = 300, 60
    first = figures.read(102.0)
    assert first["step_seconds"] == 0.25
    assert (first["prompt_tokens_per_second"], first["output_tokens_per_second"]) == (150, 30)

    figures.stepped(0.5)
    engine.num_output_tokens = 70
    second = figures.read(104.0)
    assert second["step_seconds"] == 0.5
    assert (second["prompt_tokens_per_second"], second["output_tokens_per_second"]) == (0, 5)
    assert (second["num_computed_prompt_tokens"], second["num_output_tokens"]) == (300, 70)


def test_an_idle_engine_keeps_its_last_step_time(engine: Engine) -> None:
    figures = LiveFigures(engine.counts, 0.0)
    assert figures.read(1.0)["step_seconds"] == 0
    figures.stepped(0.25)
    engine.num_output_tokens = 9
    figures.read(2.0)
    idle = figures.read(3.0)
    assert (idle["step_seconds"], idle["output_tokens_per_second"]) == (0.25, 0)
    assert figures.read(3.0)["output_tokens_per_second"] == 0  # no time has passed


def test_cached_prompt_tokens_are_those_of_finished_requests(engine: Engine) -> None:
    figures = LiveFigures(engine.counts, 0.0)
    for num_cached_tokens in (7, 0, 5):
        figures.answered(Outcome(1, 200, "{}", num_cached_tokens=num_cached_tokens))
    assert figures.read(1.0)["num_cached_prompt_tokens"] == 12
