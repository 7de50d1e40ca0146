"""Sampling in torch and in Triton against the reference: the same token from the same number."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.grids import slow
from trunkline.kernels import reference, sampling
from trunkline.kernels.gpu import logit_images, threshold
from trunkline.kernels.gpu import sampling as triton_sampling

Sampler = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
SAMPLERS: dict[str, Sampler] = {
    "torch": sampling.sample_rows,
    "triton": triton_sampling.sample_rows,
}
# The second is interpreted where no GPU is.
BOTH = ["torch", pytest.param("triton", marks=pytest.mark.interpreter)]
LAST_UNIFORM = 1.0 - 2.0**-24


@pytest.fixture(params=BOTH)
def sample_rows(request: pytest.FixtureRequest) -> Sampler:
    return SAMPLERS[request.param]


@dataclass(frozen=True)
class Rows:
    """The arguments of one call."""

    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    uniform: Tensor

    def tokens(self, sampler: Sampler) -> Tensor:
        return sampler(self.logits, self.temperature, self.top_k, self.top_p, self.uniform)


def make_rows(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    uniform: list[float] | None = None,
) -> Rows:
    """Rows with the same settings; without `uniform`, numbers evenly over [0, 1)."""
    num_rows, device = len(logits), logits.device
    if uniform is None:
        uniform = [i / num_rows for i in range(num_rows)]
    return Rows(
        logits,
        torch.full((num_rows,), temperature, device=device),
        torch.full((num_rows,), top_k, dtype=torch.int32, device=device),
        torch.full((num_rows,), top_p, device=device),
        torch.tensor(uniform, device=device),
    )


LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda normal: 3 * normal,
    "many ties": lambda normal: (2 * normal).round(),
    "masked": lambda normal: normal.where(normal.abs() < 1, -torch.inf).nan_to_num(neginf=-1e4),
    "minus infinity": lambda normal: normal.where(
        normal > normal.mean(-1, keepdim=True), -torch.inf
    ),
    "huge": lambda normal: 1e6 * normal,
    "tiny": lambda normal: 1e-30 * normal,
    "bfloat16": lambda normal: (4 * normal).bfloat16(),
    "float16": lambda normal: (4 * normal).half(),
    "flat": lambda normal: 0 * normal,
}


def random_rows(kind: str, num_rows: int, vocab_size: int, device: torch.device) -> Rows:
    """Rows of all settings mixed; the settings' limits are frequent."""
    generator = torch.Generator().manual_seed(vocab_size)
    normal = torch.randn(num_rows, vocab_size, generator=generator)
    logits = LOGITS[kind](normal) if vocab_size > 1 else normal

    def choose(*choices: float) -> Tensor:
        """One of the choices, or a random number."""
        index = torch.randint(len(choices) + 3, (num_rows,), generator=generator)
        shares = torch.rand(num_rows, generator=generator)
        table = torch.tensor([*choices, 0.0, 0.0, 0.0])
        return torch.where(index < len(choices), table[index], shares)

    return Rows(
        logits.to(device),
        (2 * choose(0.0, 0.5, 1e-3, 1e-30)).to(device),
        (choose(0.0, 0.0, 1.0) * min(100, vocab_size + 5)).ceil().int().to(device),
        choose(1.0, 1.0, 0.0, 1e-6, 0.9999).to(device),
        ((2**24 * choose(0.0, LAST_UNIFORM)).floor() / 2**24).to(device),
    )


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("vocab_size", [1, 5, 50, 1000, *slow(5000)])
def test_torch_equals_the_reference(kind: str, vocab_size: int, device: torch.device) -> None:
    rows = random_rows(kind, 200, vocab_size, device)
    assert torch.equal(rows.tokens(sampling.sample_rows), rows.tokens(reference.sample_rows))


SIZES = {1: 2, 5: 8, 50: 8, 1000: 4, 3000: 4}  # of the vocabulary -> interpreted rows
QUICK_CASES = {(kind, 50) for kind in LOGITS} | {("normal", size) for size in SIZES}


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("kind", "vocab_size"),
    [
        pytest.param(*case, marks=() if case in QUICK_CASES else pytest.mark.slow)
        for case in itertools.product(LOGITS, SIZES)
    ],
)
def test_triton_equals_the_reference(kind: str, vocab_size: int, device: torch.device) -> None:
    num_rows = SIZES[vocab_size] if device.type == "cpu" else 1000
    rows = random_rows(kind, num_rows, vocab_size, device)
    expected = rows.tokens(reference.sample_rows)
    found = rows.tokens(triton_sampling.sample_rows)
    # A device's exp may differ in its last bit.
    assert (found != expected).sum() <= (0 if device.type == "cpu" else 3)


@pytest.mark.parametrize("vocab_size", [9000, *slow(50_000)])
def test_large_vocabulary(vocab_size: int, sample_rows: Sampler, device: torch.device) -> None:
    rows = random_rows("normal", 3, vocab_size, device)
    assert torch.equal(rows.tokens(sample_rows), rows.tokens(reference.sample_rows))


@pytest.mark.interpreter
@pytest.mark.parametrize("block_size", [256, *slow(64)])
def test_the_cut_into_blocks_does_not_matter(
    block_size: int, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    rows = random_rows("normal", 8, 700, device)
    whole = rows.tokens(triton_sampling.sample_rows)
    monkeypatch.setattr(triton_sampling, "BLOCK_SIZE", block_size)
    assert torch.equal(rows.tokens(triton_sampling.sample_rows), whole)


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", LOGITS)
def test_rows_that_take_more_passes(
    kind: str, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """More tokens than can be copied are where the threshold may be, tokens of one logit too."""
    monkeypatch.setattr(triton_sampling, "CAPACITY", 4)
    monkeypatch.setattr(triton_sampling, "BLOCK_SIZE", 64)
    rows = random_rows(kind, 8, 300, device)
    # With top-k and top-p, one of them, and the other, beside what chance gives.
    rows.temperature[:3], rows.top_k[:3] = 1.0, torch.tensor([40, 120, 0], dtype=torch.int32)
    rows.top_p[:3] = torch.tensor([0.7, 1.0, 0.7])
    expected = rows.tokens(reference.sample_rows)
    found = rows.tokens(triton_sampling.sample_rows)
    assert (found != expected).sum() <= (0 if device.type == "cpu" else 1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Callable[[Rows], float]:
    """How often the kernel reads each logit of a row that is longer than what it copies."""
    if device.type != "cpu":
        pytest.skip("only the interpreter's loads can be counted")
    load = logit_images.load_logits
    num_read = 0
    size = 0

    def counted(logits: Any, token: Any, vocab_size: Any) -> Any:
        nonlocal num_read
        if int(np.ravel(vocab_size.handle.data)[0]) == size:
            num_read += int((token.handle.data < size).sum())
        return load(logits, token, vocab_size)

    for module in (triton_sampling, threshold):
        monkeypatch.setattr(module, "load_logits", counted)

    def measure(rows: Rows) -> float:
        nonlocal num_read, size
        num_read, size = 0, rows.logits.shape[1]
        expected = rows.tokens(reference.sample_rows)
        assert torch.equal(rows.tokens(triton_sampling.sample_rows), expected)
        return num_read / rows.logits.numel()

    return measure


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_logit_is_read_a_few_times(reads: Callable[[Rows], float], dtype: torch.dtype) -> None:
    size = 9000
    normal = torch.randn(1, size, generator=torch.Generator().manual_seed(1))
    likely = torch.arange(size) % 900 == 7
    logits = (2 * normal + 8 * likely).to(dtype)
    # Of the last block, which holds the token, some are read twice.
    block = triton_sampling.BLOCK_SIZE / size
    half = [0.5]
    for most, settings in (
        (1, {"temperature": 0.0}),
        (3, {}),
        (4, {"top_p": 0.9}),
        (4, {"top_k": 20}),
        (5, {"top_k": 20, "top_p": 0.9}),
        (3, {"top_p": 0.01}),
    ):
        rows = make_rows(logits, uniform=half, **settings)  # type: ignore[arg-type]
        assert reads(rows) <= most + block, settings

    # A grammar that allows fewer tokens than top-k, or masks that are numbers.
    for masked in (-torch.inf, -1e4):
        few = torch.where(likely, normal, masked).to(dtype)
        assert reads(make_rows(few, top_k=50, uniform=half)) <= 6 + block
    # All alike, and evenly spread.
    assert reads(make_rows(0 * normal, top_p=0.5, uniform=half)) <= 3 + block
    even = torch.linspace(-9, 9, size).unsqueeze(0)
    assert reads(make_rows(even, top_k=4500, top_p=0.9, uniform=half)) <= 7 + block


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's arithmetic
@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan, -torch.nan])
def test_rows_without_a_likeliest_token_end(value: float, device: torch.device) -> None:
    """Whatever comes of them."""
    logits = torch.full((4, 300), value, device=device)
    logits[1::2, 7] = 1.0
    for settings in ({"top_p": 0.5}, {"top_k": 20}, {"top_k": 20, "top_p": 0.5}, {}):
        found = make_rows(logits, **settings).tokens(triton_sampling.sample_rows)  # type: ignore[arg-type]
        assert found.shape == (4,)


def test_many_candidates(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Rows that the first candidates do not settle, beside rows that they do."""
    monkeypatch.setattr(sampling, "FIRST_CANDIDATES", 4)
    monkeypatch.setattr(sampling, "CHUNK_LOGITS", 1500)
    rows = random_rows("many ties", 300, 500, device)
    assert torch.equal(rows.tokens(sampling.sample_rows), rows.tokens(reference.sample_rows))


def test_greedy_takes_the_first_among_equals(sample_rows: Sampler, device: torch.device) -> None:
    logits = torch.tensor(
        [[1.0, 3.0, 3.0, 2.0], [-0.0, 0.0, -1.0, 0.0], [-torch.inf, -torch.inf, -5.0, -5.0]]
    )
    found = make_rows(logits.to(device), temperature=0.0).tokens(sample_rows)
    assert found.tolist() == [1, 0, 2]


def test_no_rows(sample_rows: Sampler, device: torch.device) -> None:
    assert make_rows(torch.empty(0, 9, device=device)).tokens(sample_rows).shape == (0,)


def test_top_k_keeps_ties(sample_rows: Sampler, device: torch.device) -> None:
    # Each token is likely enough that one of seven even numbers falls to it.
    logits = torch.tensor([0.2, 0.4, 0.0, 0.2, -0.0]).expand(7, -1).to(device)
    for top_k, kept in ((1, {1}), (2, {0, 1, 3}), (3, {0, 1, 3}), (4, {0, 1, 2, 3, 4})):
        assert set(make_rows(logits, top_k=top_k).tokens(sample_rows).tolist()) == kept


def test_top_p_keeps_ties(sample_rows: Sampler, device: torch.device) -> None:
    logits = torch.tensor([0.15, 0.3, 0.15, 0.25, 0.15]).log().expand(7, -1).to(device)
    for top_p, kept in (
        (0.0, {1}),
        (0.29, {1}),
        (0.31, {1, 3}),
        (0.54, {1, 3}),
        (0.56, {0, 1, 2, 3, 4}),
    ):
        assert set(make_rows(logits, top_p=top_p).tokens(sample_rows).tolist()) == kept


def test_the_largest_ties_always_stay(sample_rows: Sampler, device: torch.device) -> None:
    logits = torch.tensor([0.0, 7.0, 1.0, 7.0]).expand(4, -1).to(device)
    for settings in ({"top_p": 0.0}, {"top_p": 1e-9}, {"top_k": 1}, {"top_k": 1, "top_p": 0.0}):
        found = make_rows(logits, **settings).tokens(sample_rows).tolist()  # type: ignore[arg-type]
        assert found == [1, 1, 3, 3]


def test_uniform_numbers_go_along_the_vocabulary(
    sample_rows: Sampler, device: torch.device
) -> None:
    logits = torch.tensor([-torch.inf, 0.5, 0.25, 0.125, 0.125, -torch.inf])
    logits[1:5] = logits[1:5].log()
    uniform = [0.0, 0.5 - 2**-24, 0.5, 0.75 - 2**-24, 0.75, 0.875 - 2**-24, 0.875, LAST_UNIFORM]
    rows = make_rows(logits.expand(8, -1).to(device), uniform=uniform)
    assert rows.tokens(sample_rows).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    "settings", [{}, {"top_p": 0.9}, *slow({"top_k": 11}, {"temperature": 1.7})]
)
def test_frequencies(
    settings: dict[str, float], sample_rows: Sampler, device: torch.device
) -> None:
    """Evenly spread numbers give each token its probability, to one part in their count."""
    count = 40 if device.type == "cpu" else 2000
    logits = 2 * torch.randn(20, generator=torch.Generator().manual_seed(1)).to(device)
    rows = make_rows(logits.expand(count, -1), **settings)  # type: ignore[arg-type]
    found = torch.bincount(rows.tokens(sample_rows), minlength=20) / count

    expected = (logits / settings.get("temperature", 1.0)).softmax(-1)
    values, ids = expected.sort(descending=True)
    if "top_k" in settings:
        expected[ids[11:]] = 0
    if "top_p" in settings:
        expected[ids[values.cumsum(0) - values >= 0.9]] = 0
    expected /= expected.sum()
    assert (found - expected).abs().max() < 1.01 / count


@pytest.mark.interpreter
def test_rows_far_apart(device: torch.device) -> None:
    """Elements beyond 2^31."""
    stride, vocab_size = 2**30 + 16, 40
    num_bytes = 2 * (2 * stride + vocab_size)
    # Memory that is only mapped where it is written to.
    if device.type == "cpu":
        memory = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.float16)
    else:
        memory = torch.zeros(num_bytes // 2, dtype=torch.float16, device=device)
    logits = memory.as_strided((3, vocab_size), (stride, 1))
    rows = random_rows("float16", 3, vocab_size, device)
    logits.copy_(rows.logits)
    far = Rows(logits, rows.temperature, rows.top_k, rows.top_p, rows.uniform)
    assert torch.equal(far.tokens(triton_sampling.sample_rows), rows.tokens(reference.sample_rows))
