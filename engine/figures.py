"""Live figures of an engine, for whoever watches.

The main thread counts, the keeper thread reads at each heartbeat. Neither waits for the other:
every number has one writer, and a figure that is a step old does no harm.
"""

from __future__ import annotations

from collections.abc import Callable

from trunkline.engine.answering import Counts
from trunkline.store.records import Outcome

Figures = dict[str, float | int | str]


class LiveFigures:
    """Counts what the engine does not, and turns counts into rates."""

    def __init__(self, counts: Callable[[], Counts], started: float) -> None:
        """Count from `started` on, in seconds of a monotonic clock.

        Args:
            counts: the engine's, from any thread.
        """
        self._counts = counts
        # Written by the main thread.
        self._busy_seconds = 0.0
        self._num_stepped = 0  # steps whose time is in it; the engine counts from their start
        self._num_cached_prompt_tokens = 0
        # Written by the keeper thread: how things stood at the last heartbeat.
        self._at = started
        self._busy_seconds_then = 0.0
        self._num_stepped_then = 0
        self._num_prompt_tokens_then = 0
        self._num_output_tokens_then = 0
        self._step_seconds = 0.0

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._busy_seconds += seconds
        self._num_stepped += 1

    def answered(self, outcome: Outcome) -> None:
        """A request has finished."""
        self._num_cached_prompt_tokens += outcome.num_cached_tokens

    def read(self, now: float) -> Figures:
        """All figures; rates and the mean time of a step are of the time since the last call.

        Args:
            now: seconds of the same clock as `started`.
        """
        counts = self._counts()
        num_prompt_tokens = counts.num_computed_prompt_tokens
        num_output_tokens = counts.num_output_tokens
        num_stepped, busy_seconds = self._num_stepped, self._busy_seconds
        seconds = now - self._at
        if num_stepped > self._num_stepped_then:
            self._step_seconds = (busy_seconds - self._busy_seconds_then) / (
                num_stepped - self._num_stepped_then
            )
        prompt_rate = output_rate = 0.0
        if seconds > 0:
            prompt_rate = (num_prompt_tokens - self._num_prompt_tokens_then) / seconds
            output_rate = (num_output_tokens - self._num_output_tokens_then) / seconds
        self._at, self._busy_seconds_then = now, busy_seconds
        self._num_stepped_then = num_stepped
        self._num_prompt_tokens_then = num_prompt_tokens
        self._num_output_tokens_then = num_output_tokens
        return {
            "num_running": counts.num_running,
            "num_waiting": counts.num_waiting,
            "kv_pages_in_use": counts.kv_pages_in_use,
            "kv_pages": counts.kv_pages,
            "num_steps": counts.num_steps,
            "num_preemptions": counts.num_preemptions,
            "step_seconds": round(self._step_seconds, 6),
            "num_computed_prompt_tokens": num_prompt_tokens,
            "num_cached_prompt_tokens": self._num_cached_prompt_tokens,
            "num_output_tokens": num_output_tokens,
            "prompt_tokens_per_second": round(prompt_rate, 1),
            "output_tokens_per_second": round(output_rate, 1),
        }
