"""Exits with 0 when the engine of this container sends its heartbeats, with 1 otherwise."""

from __future__ import annotations

import os
import sys
import time

from trunkline.store.database import Database
from trunkline.store.engines import Engines
from trunkline.store.location import StoreLocation

ALIVE_WITHIN_SECONDS = 30.0


def main() -> int:
    name = os.environ["TRUNKLINE_ENGINE_NAME"]
    database = Database.open(StoreLocation().url)
    try:
        alive = Engines(database).list(time.time(), ALIVE_WITHIN_SECONDS)
    finally:
        database.close()
    return 0 if name in {engine.name for engine in alive} else 1


if __name__ == "__main__":
    sys.exit(main())
