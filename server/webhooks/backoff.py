"""When to try again."""

from __future__ import annotations

import random
from dataclasses import dataclass

HOUR_SECONDS = 3600.0


@dataclass(frozen=True)
class Backoff:
    """The pause after a failed attempt: doubled each time, up to a limit, with jitter."""

    first_seconds: float = 5.0
    max_seconds: float = 2 * HOUR_SECONDS
    give_up_seconds: float = 72 * HOUR_SECONDS  # after the event

    def next_attempt_at(self, event_at: float, num_attempts: int, now: float) -> float | None:
        """Unix seconds; None: the event is too old to be tried again.

        Args:
            event_at: unix seconds.
            num_attempts: so far, at least 1.
        """
        # The exponent's own limit keeps the power from overflowing.
        pause = min(self.max_seconds, self.first_seconds * 2 ** min(num_attempts - 1, 30))
        # What has failed together is not tried again together.
        at = now + pause * random.uniform(0.5, 1)
        return at if at <= event_at + self.give_up_seconds else None
