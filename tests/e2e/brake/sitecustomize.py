"""Brakes for processes under test: so many steps of an engine, so many lines of a job, and no more.

Python imports a module of this name when it starts, where its folder is on the path; `braking.py`
puts it there. An environment variable of each brake names a folder. A file in it says how far every
process may go, and each process writes beside it how far it has come when it may not go on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.01


class Brake:
    """Counts what this process does, and says where it has to wait."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._said: dict[str, int] = {}
        self.num_done = 0

    def holds(self, **figures: int) -> bool:
        """True while no more may be done; `figures` are written down then."""
        try:
            order, most = map(int, (self._folder / "limit").read_text().split())
        except FileNotFoundError:
            return False
        if self.num_done < most:
            return False
        says = {"order": order, "num_done": self.num_done, **figures}
        if says != self._said:
            path = self._folder / f"{os.getpid()}.json"
            written = path.with_suffix(".new")
            written.write_text(json.dumps(says))
            written.replace(path)
            self._said = says
        return True


def brake_steps(module: Any, brake: Brake) -> None:
    """An engine that may not go on has steps that do nothing. All around it goes on as ever."""
    step_on = module.Engine.step
    num_answered = 0

    def step(engine: Any) -> list[Any]:
        nonlocal num_answered
        counts = engine.counts()
        num_unfinished = counts.num_running + counts.num_waiting
        if brake.holds(num_answered=num_answered, num_unfinished=num_unfinished):
            time.sleep(LOOK_SECONDS)
            return []
        finished: list[Any] = step_on(engine)
        brake.num_done += 1
        num_answered += sum(not request.line.is_live for request in finished)
        return finished

    module.Engine.step = step


def brake_lines(name: str) -> Callable[[Any, Brake], None]:
    """A job that may not go on gets no further line from the module's generator `name`."""

    def brake_generator(module: Any, brake: Brake) -> None:
        lines_of = getattr(module, name)

        def lines(*arguments: Any) -> Iterator[Any]:
            for line in lines_of(*arguments):
                while brake.holds():
                    time.sleep(LOOK_SECONDS)
                brake.num_done += 1
                yield line

        setattr(module, name, lines)

    return brake_generator


# Environment variable -> the module that has what is braked, and how.
SEAMS: dict[str, tuple[str, Callable[[Any, Brake], None]]] = {
    "TRUNKLINE_TEST_STEPS": ("trunkline.engine.core", brake_steps),
    "TRUNKLINE_TEST_CHECKED_LINES": ("trunkline.server.intake", brake_lines("iterate_lines")),
    "TRUNKLINE_TEST_WRITTEN_LINES": (
        "trunkline.server.finalize",
        brake_lines("_checked_now_and_then"),
    ),
}


class Finder(MetaPathFinder):
    """Puts the brake into a module when that is imported, which most processes never do."""

    def __init__(self, name: str, put_brake_into: Callable[[Any], None]) -> None:
        self._name = name
        self._put_brake_into = put_brake_into

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self._put_brake_into(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


for variable, (module_name, put_into) in SEAMS.items():
    if folder_name := os.environ.get(variable):
        used = Brake(Path(folder_name))
        sys.meta_path.insert(
            0, Finder(module_name, lambda module, put=put_into, used=used: put(module, used))
        )
