"""Sharing work among threads: every item done once, whatever else is going on."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from trunkline.kernels.linear import Linear
from trunkline.kernels.native import NativeLibrary

AFTER_A_FORK = """
import os
import torch
from trunkline.kernels import native
from trunkline.kernels.linear import Linear

assert native.library() is not None
torch.set_num_threads(3)
torch.manual_seed(0)
linear, x = Linear(torch.randn(300, 64).bfloat16()), torch.randn(400, 64).bfloat16()
expected = linear(x)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(linear(x), expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(linear(x), expected)
"""


@pytest.fixture
def product(library: NativeLibrary) -> tuple[Linear, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 96, generator=generator).bfloat16()
    return Linear(weight), torch.randn(700, 96, generator=generator).bfloat16()


def test_the_number_of_threads_does_not_change_a_bit(product: tuple[Linear, Tensor]) -> None:
    linear, x = product
    torch.set_num_threads(1)
    expected = linear(x)
    for num_threads in (2, 3, 8, 2, 1):
        torch.set_num_threads(num_threads)
        for num_rows in (1, 2, 7, 200, len(x)):
            assert torch.equal(linear(x[:num_rows]), expected[:num_rows])


def test_thousands_of_small_calls(product: tuple[Linear, Tensor]) -> None:
    """A helper that comes late to one call finds the next one: none may be done twice or lost."""
    linear, x = product
    torch.set_num_threads(4)
    expected = linear(x[:3])
    for _ in range(5000):
        assert torch.equal(linear(x[:3]), expected)


def test_calls_from_several_threads_at_once(product: tuple[Linear, Tensor]) -> None:
    linear, x = product
    torch.set_num_threads(3)
    expected = linear(x)
    with ThreadPoolExecutor(4) as executor:
        results = list(executor.map(lambda _: linear(x), range(40)))
    assert all(torch.equal(result, expected) for result in results)


def test_a_forked_child_has_threads_of_its_own(library: NativeLibrary) -> None:
    """Those of the compiled kernels, that is: torch's own do not outlive a fork."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER_A_FORK],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
