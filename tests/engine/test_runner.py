"""Hand-made plans: chunks, a shared prefix read as a group, decode, tokens still on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.engine.tiny import unwritten_cache
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.model.weights import assemble, random_tensors, tensor_shapes
from trunkline.engine.runner import Runner
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.step_plan import PENDING_TOKEN, AttentionSpans, StepPlan

CPU = torch.device("cpu")
PAGE = 8
HF_CONFIG = LlamaConfig(
    vocab_size=101,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    eos_token_id=None,
    bos_token_id=None,
)


def make_plan(
    tables: dict[int, list[int]],
    entries: list[tuple[int, int, list[int], bool]],
    groups: list[tuple[int, int, int]] = [],  # noqa: B006 - never changed
) -> StepPlan:
    """A plan from entries (slot, first position, token ids, samples).

    Args:
        tables: page table of each slot.
        groups: (first entry, last entry, end): those entries read the positions [0, end) together.
    """
    length = np.array([len(tokens) for _, _, tokens, _ in entries])
    row_end = np.cumsum(length)
    row_start = row_end - length
    start = np.array([first for _, first, _, _ in entries])
    own_start = np.zeros(len(entries), np.int64)
    spans = []
    for first, last, end in groups:
        spans.append((row_start[first], row_end[last], first, 0, end, False))
        own_start[first : last + 1] = end
    for e in range(len(entries)):
        spans.append((row_start[e], row_end[e], e, own_start[e], start[e] + length[e], True))
    *columns, causal = zip(*spans, strict=True)
    positions = np.concatenate([np.arange(s, s + n) for s, n in zip(start, length, strict=True)])
    width = max(len(tables[slot]) for slot, *_ in entries)
    page_tables = np.array(
        [tables[slot] + [-1] * (width - len(tables[slot])) for slot, *_ in entries], np.int32
    )
    row_entry = np.repeat(np.arange(len(entries)), length)
    pages = page_tables[row_entry, positions // PAGE].astype(np.int64)
    return StepPlan(
        step=3,
        entry_start=start.astype(np.int32),
        entry_length=length.astype(np.int32),
        entry_sequence=np.array([slot for slot, *_ in entries], np.int32),
        entry_samples=np.array([samples for *_, samples in entries]),
        token_ids=np.concatenate([tokens for _, _, tokens, _ in entries]).astype(np.int32),
        positions=positions.astype(np.int32),
        page_tables=page_tables,
        write_slots=pages * PAGE + positions % PAGE,
        spans=AttentionSpans(
            *(np.array(column, np.int32) for column in columns), causal=np.array(causal)
        ),
    )


@pytest.fixture
def runner(one_thread: None) -> Runner:
    config = config_from_hf(HF_CONFIG)
    decoder = assemble(config, random_tensors(tensor_shapes(config), torch.float32, CPU))
    return Runner(decoder, unwritten_cache(config, 40, PAGE))


def transformers_output(prompt: list[int], num_tokens: int) -> list[int]:
    config = config_from_hf(HF_CONFIG)
    hf = AutoModelForCausalLM.from_config(HF_CONFIG, dtype=torch.float32).eval()
    hf.load_state_dict(random_tensors(tensor_shapes(config), torch.float32, CPU), strict=False)
    hf.tie_weights()
    ids = torch.tensor([prompt])
    output = hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(prompt) :]]


def greedy(slot: int, prompt: list[int]) -> Sequence:
    params = SamplingParams(max_tokens=9, temperature=0.0)
    return Sequence(slot, 0, np.array(prompt, np.int32), params)


def tokens_of(rng: np.random.Generator, count: int) -> list[int]:
    return [int(token) for token in rng.integers(0, 101, count)]


def test_chunks_then_decode(runner: Runner) -> None:
    prompt = tokens_of(np.random.default_rng(0), 80)
    tables = {5: [9, 3, 4, 7, 1, 0, 2, 22, 11, 12, 13, 39]}
    sequences = {5: greedy(5, prompt)}
    first = runner.run(make_plan(tables, [(5, 0, prompt[:70], False)]), sequences)
    assert first.step == 3
    assert len(first.token_ids) == 0
    result = runner.run(make_plan(tables, [(5, 70, prompt[70:], True)]), sequences)
    output = [int(result.token_ids[0])]
    for position in range(80, 84):
        entry = (5, position, [output[-1]], True)
        result = runner.run(make_plan(tables, [entry]), sequences)
        assert result.sequence.tolist() == [5]
        output.append(int(result.token_ids[0]))
    assert output == transformers_output(prompt, 5)


def test_a_prefix_is_used_in_the_step_that_computes_it(runner: Runner) -> None:
    """The first member computes the shared pages; the others read them in the same step."""
    rng = np.random.default_rng(1)
    prefix = tokens_of(rng, 3 * PAGE)
    prompts = [prefix + tokens_of(rng, n) for n in (5, 1, 12)]
    shared = [30, 2, 17]
    tables = {0: [*shared, 5, 6], 1: [*shared, 8], 2: [*shared, 0, 1, 3]}
    sequences = {slot: greedy(slot, prompt) for slot, prompt in enumerate(prompts)}
    entries = [
        (0, 0, prompts[0], True),
        (1, 3 * PAGE, prompts[1][3 * PAGE :], True),
        (2, 3 * PAGE, prompts[2][3 * PAGE :], True),
    ]
    result = runner.run(make_plan(tables, entries, [(1, 2, 3 * PAGE)]), sequences)
    outputs = [[int(token)] for token in result.token_ids]
    for step in range(3):  # all three read the prefix as one group
        entries = [
            (slot, len(prompts[slot]) + step, [outputs[slot][-1]], True) for slot in range(3)
        ]
        result = runner.run(make_plan(tables, entries, [(0, 2, 3 * PAGE)]), sequences)
        assert result.sequence.tolist() == [0, 1, 2]
        for slot in range(3):
            outputs[slot].append(int(result.token_ids[slot]))
    assert outputs == [transformers_output(prompt, 4) for prompt in prompts]


def test_pending_tokens_are_those_sampled_before(runner: Runner) -> None:
    """The host need not know a token to plan the next; slots beyond the first 64 included."""
    rng = np.random.default_rng(2)
    prompts = {2: tokens_of(rng, 10), 90: tokens_of(rng, 11)}
    tables = {2: [1, 2], 90: [3, 4]}
    sequences = {slot: greedy(slot, prompt) for slot, prompt in prompts.items()}
    plan = make_plan(tables, [(slot, 0, prompt, True) for slot, prompt in prompts.items()])
    outputs = [[int(token)] for token in runner.run(plan, sequences).token_ids]
    for step in range(3):
        entries = [
            (slot, len(prompt) + step, [PENDING_TOKEN], True) for slot, prompt in prompts.items()
        ]
        result = runner.run(make_plan(tables, entries), sequences)
        for output, token in zip(outputs, result.token_ids, strict=True):
            output.append(int(token))
    assert outputs == [transformers_output(prompt, 4) for prompt in prompts.values()]


def test_logprobs_come_with_the_tokens(runner: Runner) -> None:
    prompt = tokens_of(np.random.default_rng(3), 12)
    params = SamplingParams(max_tokens=3, temperature=0.0, num_top_logprobs=2)
    sequences = {
        0: Sequence(0, 0, np.array(prompt, np.int32), params),
        1: greedy(1, prompt),
    }
    tables = {0: [0, 1], 1: [2, 3]}
    plan = make_plan(tables, [(slot, 0, prompt, True) for slot in (0, 1)])
    result = runner.run(plan, sequences)
    assert result.logprobs[1] is None
    found = result.logprobs[0]
    assert found is not None
    assert found.top_ids[0] == result.token_ids[0]
    assert found.sampled == found.top_logprobs[0] > found.top_logprobs[1]
