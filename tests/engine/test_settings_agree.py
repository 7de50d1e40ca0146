"""Every combination of settings gives the same tokens, and the plan computes what it promises."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.grids import slow
from trunkline.engine.kv_cache import allocate_kv_cache
from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.model.weights import LoadedModel, load_model
from trunkline.engine.ordering import Order
from trunkline.engine.planner import Grouping, Sharing
from trunkline.engine.prefix_tree import Prompts, build_prefix_tree
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler import Scheduler
from trunkline.engine.scheduler_config import Policy, SchedulerConfig
from trunkline.engine.sequence import SamplingParams, Sequence
from trunkline.engine.simulation.workloads import VOCABULARY, WorkItem, make_workload

PAGE_SIZE = 16

# Workload -> (requests, scale of the lengths).
SIZES = {
    "W1": (16, 0.04),
    "W3": (12, 0.05),
    "W5": (12, 0.08),
    "W8": (16, 0.03),
    "W10": (18, 0.1),
    "W11": (16, 0.02),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random Llama that tells tokens apart."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    ).save_pretrained(folder)
    return load_model(folder, torch.float32, torch.device("cpu"), LoadFormat.DUMMY)


def run(
    model: LoadedModel, items: list[WorkItem], config: SchedulerConfig
) -> tuple[list[list[int]], Scheduler]:
    device = torch.device("cpu")
    cache = allocate_kv_cache(
        model.config, torch.float32, device, config.num_pages, config.page_size
    )
    runner, scheduler = Runner(model.decoder, cache), Scheduler(config)
    sequences = [
        Sequence(i, 0, item.prompt, SamplingParams(item.num_output_tokens, temperature=0.0))
        for i, item in enumerate(items)
    ]
    scheduler.add(sequences)
    while (plan := scheduler.schedule()) is not None:
        scheduler.commit(runner.run(plan, scheduler.sequences))
    return [sequence.output for sequence in sequences], scheduler


@pytest.mark.parametrize("workload", ["W1", "W10", "W11", *slow("W3", "W5", "W8")])
def test_all_combinations_agree(tiny: LoadedModel, workload: str) -> None:
    count, scale = SIZES[workload]
    items = make_workload(workload, count, scale=scale)
    promised = build_prefix_tree(
        Prompts.from_lists([item.prompt for item in items]), PAGE_SIZE
    ).unique_tokens
    wanted: list[list[int]] | None = None
    for policy, sharing, order in itertools.product(Policy, Sharing, Order):
        config = SchedulerConfig(PAGE_SIZE, 1200, 256, policy=policy, sharing=sharing, order=order)
        outputs, scheduler = run(tiny, items, config)
        wanted = wanted or outputs
        assert outputs == wanted, config
        assert scheduler.num_preemptions == 0
        if sharing is Sharing.PLANNED:
            assert scheduler.num_computed_prompt_tokens == promised
    assert wanted is not None
    assert len({tuple(output) for output in wanted}) > 1, "the model tells the prompts apart"


@pytest.mark.parametrize("grouping", list(Grouping))
def test_groupings_agree_under_preemption(tiny: LoadedModel, grouping: Grouping) -> None:
    items = make_workload("W10", 18, scale=0.1)
    largest = max(len(item.prompt) + item.num_output_tokens for item in items)
    roomy, _ = run(tiny, items, SchedulerConfig(PAGE_SIZE, 1200, 256))
    config = SchedulerConfig(
        PAGE_SIZE, largest // PAGE_SIZE + 4, 64, policy=Policy.FCFS, grouping=grouping
    )
    tight, _ = run(tiny, items, config)
    assert tight == roomy
