"""Holds processes under test in the middle of their work, on a machine of any speed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.support import wait_for

SITE_FOLDER = Path(__file__).parent / "brake"
SECONDS = 240.0  # an engine that begins from nothing gets there too


@dataclass(frozen=True)
class Standing:
    """A process that has done all that it may.

    Attributes:
        process_id: its id.
        num_done: steps or lines since it began.
        num_answered: of an engine: requests of batches that it has answered since it began.
        num_unfinished: of an engine: sequences that it has begun with, or that wait.
    """

    process_id: int
    num_done: int
    num_answered: int = 0
    num_unfinished: int = 0


class Brake:
    """Holds processes that have `environment` at a limit. Each counts from its own beginning."""

    def __init__(self, folder: Path, counted: str = "STEPS") -> None:
        """There is no limit yet.

        Args:
            folder: of its own.
            counted: STEPS of an engine; CHECKED_LINES or WRITTEN_LINES of a server's jobs.
        """
        folder.mkdir()
        self._folder = folder
        self._order = 0
        before = os.environ.get("PYTHONPATH")
        self.environment = {
            f"TRUNKLINE_TEST_{counted}": str(folder),
            "PYTHONPATH": f"{SITE_FOLDER}{os.pathsep}{before}" if before else str(SITE_FOLDER),
        }

    def allow(self, num: int) -> None:
        """Each process may do `num` steps or lines in all; one that has done more stands still."""
        self._order += 1
        written = self._folder / "limit.new"
        written.write_text(f"{self._order} {num}")
        written.replace(self._folder / "limit")

    def release(self) -> None:
        """Each process may go on and on."""
        (self._folder / "limit").unlink(missing_ok=True)

    def standing(self) -> dict[int, Standing]:
        """By process id: those that stand still because of what `allow` was called with last."""
        found = {}
        for path in self._folder.glob("*.json"):
            said = json.loads(path.read_text())
            if said.pop("order") == self._order:
                found[int(path.stem)] = Standing(int(path.stem), **said)
        return found

    def wait(self, num_unfinished: int | None = None) -> Standing:
        """Wait until the one process at work stands still, with so many sequences if that is given.

        What it has finished is then on its way to whoever waits for it.
        """

        def stands() -> Standing | None:
            for each in self.standing().values():
                if num_unfinished in {None, each.num_unfinished}:
                    return each
            return None

        return wait_for(stands, SECONDS)

    def wait_for_all(self, process_ids: list[int]) -> list[Standing]:
        """Wait until all of these processes stand still."""

        def all_stand() -> list[Standing] | None:
            found = self.standing()
            if found.keys() >= set(process_ids):
                return [found[process_id] for process_id in process_ids]
            return None

        return wait_for(all_stand, SECONDS)
