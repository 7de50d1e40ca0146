"""Part `equality`: the engine's greedy tokens are those of transformers' `generate`.

In float32 token by token, under every setting, also when memory is short. Where tokens differ, the
two best logits must be so close that rounding decides; such places are counted. In bfloat16
rounding decides often, so only how many tokens agree is looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from transformers import LlamaForCausalLM

from gpu import engines
from gpu.machine import IS_TOY, device, dtype_name
from gpu.models import small_pair
from gpu.parts import Case, Record
from harness.engine_run import PAGE_SIZE, SETTINGS, BenchmarkEngine
from trunkline.engine.kv_cache import kv_bytes_per_token
from trunkline.engine.model.decoder import Decoder
from trunkline.engine.simulation.workloads import WorkItem, make_workload

# Of the standard deviation of the logits: below it two logits count as equal.
TIE = 1e-4
LEAST_BFLOAT16_AGREEMENT = 0.8  # of the first tokens
SETTING_NAMES = list(SETTINGS)[:1] if IS_TOY else list(SETTINGS)
KINDS = (torch.float32,) if IS_TOY else (torch.float32, torch.bfloat16)
STEP_TOKENS = 16 if IS_TOY else 512
# Whether launches are recorded, and whether the cache holds only a few sequences.
MEMORIES = (
    {"no graphs": (False, False)}
    if IS_TOY
    else {
        "graphs": (True, False),
        "graphs, short memory": (True, True),
        "no graphs": (False, False),
    }
)


@dataclass(frozen=True)
class Result:
    """One setting's outputs beside the reference."""

    case: str
    outputs: int
    equal: int
    ties: int  # outputs that differ from a tie on
    first_tokens_equal: float
    preemptions: int
    is_good: bool


def workload() -> list[WorkItem]:
    if IS_TOY:
        return make_workload("W1-4", 3, scale=0.02)
    return [
        item
        for name, count, scale in (("W1-16", 48, 0.1), ("W10", 48, 0.2), ("W9", 16, 0.3))
        for item in make_workload(name, count, scale=scale)
    ]


def clipped(items: list[WorkItem], vocab_size: int) -> list[WorkItem]:
    return [WorkItem(item.prompt % np.int32(vocab_size), item.num_output_tokens) for item in items]


def reference_outputs(model: LlamaForCausalLM, items: list[WorkItem]) -> list[list[int]]:
    outputs = []
    for item in items:
        prompt = torch.from_numpy(item.prompt).long().unsqueeze(0).to(device())
        found = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=item.num_output_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        outputs.append(found[0, len(item.prompt) :].tolist())
    return outputs


def is_tie(
    model: LlamaForCausalLM, item: WorkItem, wanted: list[int], place: int, found: int
) -> bool:
    """Whether rounding alone decides between the token wanted at `place` and the one found."""
    tokens = [*item.prompt.tolist(), *wanted[:place]]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens], device=device())).logits[0, -1].float()
    difference = (logits[wanted[place]] - logits[found]).abs()
    return bool(difference < TIE * logits.std())


def compare(
    case: str,
    model: LlamaForCausalLM,
    engine: BenchmarkEngine,
    setting: str,
    items: list[WorkItem],
    wanted: list[list[int]],
) -> Result:
    done = engine.run(items, SETTINGS[setting])
    different = [i for i, output in enumerate(done.outputs) if output != wanted[i]]
    ties = 0
    is_float32 = engine.decoder.dtype == torch.float32
    if is_float32:
        for i in different:
            pairs = zip(done.outputs[i], wanted[i], strict=True)
            place = next(at for at, (mine, other) in enumerate(pairs) if mine != other)
            ties += is_tie(model, items[i], wanted[i], place, done.outputs[i][place])
    first = np.mean([o[0] == w[0] for o, w in zip(done.outputs, wanted, strict=True)])
    return Result(
        case=f"{case}, {setting}",
        outputs=len(items),
        equal=len(items) - len(different),
        ties=ties,
        first_tokens_equal=float(first),
        preemptions=done.preemptions,
        is_good=(
            len(different) == ties if is_float32 else float(first) >= LEAST_BFLOAT16_AGREEMENT
        ),
    )


@dataclass(frozen=True)
class Subject:
    """A small model as transformers' and as ours, and what it has to answer."""

    model: LlamaForCausalLM
    decoder: Decoder
    items: list[WorkItem]
    wanted: list[list[int]]

    def engine(self, *, cuda_graphs: bool, is_short: bool) -> BenchmarkEngine:
        """An engine with memory for all items, or for three of the longest."""
        lengths = [len(item.prompt) + item.num_output_tokens for item in self.items]
        tokens = 3 * max(lengths) if is_short else 2 * sum(lengths)
        token_bytes = kv_bytes_per_token(self.decoder.config, self.decoder.dtype)
        kv_bytes = (tokens + len(self.items) * PAGE_SIZE) * token_bytes
        return BenchmarkEngine(self.decoder, kv_bytes, STEP_TOKENS, cuda_graphs=cuda_graphs)


@functools.cache
def subject(kind: torch.dtype) -> Subject:
    engines.release()  # this part needs none of them
    torch.backends.cuda.matmul.allow_tf32 = False
    model, decoder = small_pair(kind, device())
    items = clipped(workload(), decoder.config.vocab_size)
    return Subject(model, decoder, items, reference_outputs(model, items))


def results(kind: torch.dtype, memory: str, setting: str) -> Iterator[Record]:
    checked = subject(kind)
    cuda_graphs, is_short = MEMORIES[memory]
    engine = checked.engine(cuda_graphs=cuda_graphs, is_short=is_short)
    case = f"{dtype_name(kind)}, {memory}"
    yield asdict(compare(case, checked.model, engine, setting, checked.items, checked.wanted))


def cases() -> Iterator[Case]:
    for kind in KINDS:
        for setting in SETTING_NAMES:
            for memory in MEMORIES:
                name = f"{dtype_name(kind)}, {memory}, {setting}"
                yield Case(name, partial(results, kind, memory, setting))


def line(record: Record) -> str:
    verdict = "ok" if record["is_good"] else "WRONG"
    return (
        f"{verdict:6}{record['case']}: {record['equal']} of {record['outputs']} outputs equal, "
        f"{record['ties']} differ from a tie on, "
        f"{record['first_tokens_equal']:.0%} of first tokens"
    )
