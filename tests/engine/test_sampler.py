"""Sampling: what each parameter means, and independence of neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trunkline.engine.logprobs import WantedLogprobs, find_logprobs
from trunkline.engine.sampler import counter_uniform, sample, sampling_batch
from trunkline.engine.sequence import SamplingParams, Sequence

VOCAB = 50
CPU = torch.device("cpu")


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3)) * 2


def sequence_with(
    prompt: tuple[int, ...] = (1,), output: tuple[int, ...] = (), **params: Any
) -> Sequence:
    sampling = SamplingParams(**{"max_tokens": 99, "temperature": 0.0, **params})
    return Sequence(0, 0, np.array(prompt, np.int32), sampling, output=list(output))


def run(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    positions = np.array([sequence.num_tokens for sequence in sequences], np.int64)
    before = logits.clone()
    tokens = sample(logits, sampling_batch(sequences, positions, logits.shape[1], CPU))
    assert torch.equal(logits, before)
    return [int(token) for token in tokens]


def many(logits: torch.Tensor, count: int, **params: Any) -> torch.Tensor:
    """[vocab] share of each token among `count` samples with different seeds."""
    sequences = [sequence_with(seed=seed, **params) for seed in range(count)]
    tokens = run(logits.expand(count, -1), sequences)
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[1]) / count


def test_greedy_is_the_largest(logits: torch.Tensor) -> None:
    assert run(logits, [sequence_with()]) == [int(logits.argmax())]
    assert run(logits.bfloat16(), [sequence_with()]) == [int(logits.bfloat16().argmax())]


def test_no_rows() -> None:
    assert run(torch.empty(0, VOCAB), []) == []


def assert_distributed(found: torch.Tensor, expected: torch.Tensor, count: int) -> None:
    """Pearson's chi-square test at p = 0.001; tokens expected under five times are one class."""
    assert set(found.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
    is_rare = expected * count < 5
    observed = torch.cat([found[~is_rare], found[is_rare].sum().unsqueeze(0)]) * count
    wanted = torch.cat([expected[~is_rare], expected[is_rare].sum().unsqueeze(0)]) * count
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = max(len(wanted) - 1, 1)
    # Wilson and Hilferty's approximation of the 99.9th percentile.
    share = 2 / (9 * freedom)
    limit = freedom * (1 - share + 3.09 * share**0.5) ** 3
    assert ((observed - wanted) ** 2 / wanted).sum() < limit


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_follow_the_softmax(logits: torch.Tensor, temperature: float) -> None:
    found = many(logits, 20_000, temperature=temperature)
    assert_distributed(found, (logits[0] / temperature).softmax(-1), 20_000)


def test_top_k(logits: torch.Tensor) -> None:
    found = many(logits, 4000, temperature=1.0, top_k=3)
    values, ids = logits[0].topk(3)
    assert_distributed(found, torch.zeros(VOCAB).index_add(0, ids, values.softmax(-1)), 4000)


@pytest.mark.parametrize("top_p", [0.0, 0.2, 0.8, 0.999])
def test_top_p(logits: torch.Tensor, top_p: float) -> None:
    """The smallest set of the most likely tokens whose probability reaches top_p."""
    found = many(logits, 4000, temperature=1.0, top_p=top_p)
    values, ids = logits[0].softmax(-1).sort(descending=True)
    kept = max(int((values.cumsum(0) < top_p).sum()) + 1, 1)
    shares = values[:kept] / values[:kept].sum()
    assert_distributed(found, torch.zeros(VOCAB).index_add(0, ids[:kept], shares), 4000)


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    found = many(logits, 2000, temperature=1.0, top_k=2, top_p=0.57)
    assert found.nonzero().flatten().tolist() == [0]  # 0.4 / 0.7 = 0.5714
    found = many(logits, 2000, temperature=1.0, top_k=2, top_p=0.58)
    assert found.nonzero().flatten().tolist() == [0, 1]


def test_top_p_over_a_spread_distribution() -> None:
    """More candidates than are sorted at first, beside a row that is settled at once."""
    spread = torch.linspace(0.0, 1e-3, 5000).unsqueeze(0)
    sharp = torch.zeros(1, 5000)
    sharp[0, 7] = 50.0
    sequences = [sequence_with(temperature=1.0, top_p=0.5, seed=s) for s in range(600)]
    tokens = run(torch.cat([spread.expand(599, -1), sharp]), sequences)
    assert tokens[-1] == 7
    assert len(set(tokens)) > 500
    assert min(tokens[:-1]) in range(2499, 2550)


def test_top_p_keeps_equal_tokens_together() -> None:
    found = many(torch.zeros(1, 400), 4000, temperature=1.0, top_p=0.5)
    assert_distributed(found, torch.full((400,), 1 / 400), 4000)


def test_a_sample_depends_on_seed_and_position_alone() -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    sequences = [
        sequence_with(temperature=1.0, seed=5),
        sequence_with(temperature=0.7, seed=6, top_k=7),
        sequence_with(temperature=1.3, seed=7, top_p=0.7, output=(3, 4)),
        sequence_with(),
        sequence_with(temperature=1.0, seed=-3, logit_bias=((4, 2.0),)),
        sequence_with(temperature=1.0, seed=2**63, top_k=3, top_p=0.4),
    ]
    together = run(logits, sequences)
    alone = [run(logits[i : i + 1], [sequence])[0] for i, sequence in enumerate(sequences)]
    order = [3, 1, 5, 0, 2, 4]
    permuted = run(logits[order], [sequences[i] for i in order])
    assert together == alone
    assert permuted == [together[i] for i in order]


def test_uniform_numbers() -> None:
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300))
    values = counter_uniform(seeds.ravel(), positions.ravel())
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert len(np.unique(values)) > 0.99 * len(values)
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    expected = len(values) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 df, p = 0.001
    grid = values.reshape(300, 300)
    for other in (grid[1:, :], grid[:, 1:].T):
        base = grid[:-1, :] if other.shape == (299, 300) else grid[:, :-1].T
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.02
    assert counter_uniform(np.array([1], np.uint64), np.array([2]))[0] == grid[2, 1]


def test_logit_bias(logits: torch.Tensor) -> None:
    assert run(logits, [sequence_with(logit_bias=((17, 100.0),))]) == [17]
    best = int(logits.argmax())
    second = int(logits[0].topk(2).indices[1])
    assert run(logits, [sequence_with(logit_bias=((best, -100.0), (VOCAB + 3, 100.0)))]) == [second]


def test_presence_and_frequency_count_the_output_only() -> None:
    logits = torch.tensor([[3.0, 2.5, 2.4, 0.0]])
    assert run(logits, [sequence_with((0, 0, 0), presence_penalty=2.0)]) == [0]
    assert run(logits, [sequence_with((0,), (0,), presence_penalty=0.4)]) == [0]
    assert run(logits, [sequence_with((0,), (0,), presence_penalty=0.55)]) == [1]
    assert run(logits, [sequence_with((1,), (0, 0), frequency_penalty=0.2)]) == [0]
    assert run(logits, [sequence_with((1,), (0, 0, 0), frequency_penalty=0.2)]) == [1]
    params = {"frequency_penalty": 0.35, "presence_penalty": 0.3}
    assert run(logits, [sequence_with((1,), (0, 1), **params)]) == [2]


def test_repetition_counts_prompt_and_output() -> None:
    logits = torch.tensor([[3.0, 2.5, 2.4, -1.0]])
    assert run(logits, [sequence_with((0,), repetition_penalty=1.1)]) == [0]
    assert run(logits, [sequence_with((0,), repetition_penalty=1.22)]) == [1]
    assert run(logits, [sequence_with((0, 0), (1,), repetition_penalty=1.4)]) == [2]
    negative = torch.tensor([[-1.0, -1.5]])
    assert run(negative, [sequence_with((0,), repetition_penalty=1.4)]) == [0]
    assert run(negative, [sequence_with((0,), repetition_penalty=1.6)]) == [1]


def test_min_tokens_hold_back_the_stop_tokens(logits: torch.Tensor) -> None:
    best = int(logits.argmax())
    params: dict[str, Any] = {"min_tokens": 2, "stop_token_ids": frozenset([best, VOCAB + 1])}
    for temperature in (0.0, 0.01):
        for output, held in (((), True), ((1,), True), ((1, 2), False)):
            sequence = sequence_with(output=output, temperature=temperature, **params)
            assert (run(logits, [sequence]) != [best]) == held


def test_logprobs_are_the_models_own(logits: torch.Tensor) -> None:
    """Neither temperature nor bias nor penalties are in them."""
    rows = logits.expand(4, -1)
    settings: list[dict[str, Any]] = [
        {"num_top_logprobs": 3, "logit_bias": ((17, 100.0),)},
        {},
        {"num_top_logprobs": 0, "temperature": 0.3},
        {"num_top_logprobs": 5, "repetition_penalty": 2.0},
    ]
    sequences = [sequence_with(**params) for params in settings]
    batch = sampling_batch(sequences, np.array([1, 1, 1, 1]), VOCAB, CPU)
    tokens = sample(rows, batch)
    wanted = WantedLogprobs.of(batch.num_top_logprobs)
    assert wanted is not None
    found = find_logprobs(rows, tokens, wanted, torch.from_numpy(wanted.rows)).by_row()
    expected = logits[0].log_softmax(-1)
    assert found[1] is None
    for i, count in ((0, 3), (2, 0), (3, 5)):
        entry = found[i]
        assert entry is not None
        assert entry.sampled == pytest.approx(float(expected[tokens[i]]), abs=1e-5)
        assert len(entry.top_ids) == len(entry.top_logprobs) == count
        assert list(entry.top_ids) == expected.topk(count).indices.tolist()
        assert list(entry.top_logprobs) == pytest.approx(expected.topk(count).values.tolist())
    assert tokens[0] == 17


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-40])
def test_extreme_penalties_leave_numbers(
    logits: torch.Tensor, penalty: float, temperature: float
) -> None:
    logits[0, 3] = 0.0
    sequence = sequence_with(
        (1, 3), tuple(range(20)), repetition_penalty=penalty, temperature=temperature
    )
    (token,) = run(logits, [sequence])
    assert token < VOCAB
    if penalty < 1 or temperature < 1:  # the largest, all but for certain
        assert logits[0, token] > 0
        assert (token < 20) == (penalty < 1)


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
def test_a_row_without_a_number_gets_a_token_of_the_vocabulary(params: dict[str, Any]) -> None:
    for value in (torch.nan, -torch.inf):
        logits = torch.full((2, VOCAB), value)
        logits[1] = torch.arange(VOCAB).float() * 100
        sequences = [sequence_with(**params), sequence_with(**params)]
        positions = np.array([1, 1], np.int64)
        tokens = sample(logits, sampling_batch(sequences, positions, VOCAB, CPU))
        assert 0 <= int(tokens[0]) < VOCAB
        assert int(tokens[1]) == VOCAB - 1
