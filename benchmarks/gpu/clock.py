"""The countdown of a part's budget."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Counts down from a moment on the wall clock, which a process after this one knows too."""

    def __init__(self, begun: float, seconds: float, now: Callable[[], float] = time.time) -> None:
        """Start at `begun`, in seconds since the epoch, with so many `seconds`."""
        self._begun = begun
        self._seconds = seconds
        self._now = now

    @property
    def used(self) -> float:
        """Seconds."""
        return self._now() - self._begun

    @property
    def left(self) -> float:
        """Seconds; below zero when there are none."""
        return self._seconds - self.used

    def allows(self, seconds: float = 0.0) -> bool:
        """True if something that takes so long would be through in time."""
        return self.left > seconds
