"""Grids of cases with a quick part and a tail."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet


def slow(*values: object) -> list[ParameterSet]:
    """Further values of a parameter, which the quick run leaves out."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
