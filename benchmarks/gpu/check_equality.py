"""Part `equality`: the engine's greedy tokens are those of transformers' `generate`.

In float32 token by token, under every setting, also when memory is short. Where tokens differ, the
two best logits must be so close that rounding decides; such places are counted. In bfloat16
rounding decides often, so only how many tokens agree is looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import LlamaForCausalLM

from gpu.machine import IS_TOY, device, write_results
from gpu.models import small_pair
from harness.engine_run import PAGE_SIZE, SETTINGS, BenchmarkEngine
from trunkline.engine.kv_cache import kv_bytes_per_token
from trunkline.engine.simulation.workloads import WorkItem, make_workload

# Of the standard deviation of the logits: below it two logits count as equal.
TIE = 1e-4
LEAST_BFLOAT16_AGREEMENT = 0.8  # of the first tokens
SETTING_NAMES = list(SETTINGS)[:1] if IS_TOY else list(SETTINGS)


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


def all_results() -> Iterator[Result]:
    torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (torch.float32,) if IS_TOY else (torch.float32, torch.bfloat16):
        model, decoder = small_pair(dtype, device())
        items = clipped(workload(), decoder.config.vocab_size)
        wanted = reference_outputs(model, items)
        token_bytes = kv_bytes_per_token(decoder.config, dtype)
        longest = max(len(item.prompt) + item.num_output_tokens for item in items)
        plenty = sum(len(item.prompt) + item.num_output_tokens for item in items)
        name = str(dtype).removeprefix("torch.")
        for memory, tokens, cuda_graphs in (
            ("graphs", 2 * plenty, True),
            ("no graphs", 2 * plenty, False),
            ("graphs, short memory", 3 * longest, True),
        ):
            if IS_TOY and cuda_graphs:
                continue
            kv_bytes = (tokens + len(items) * PAGE_SIZE) * token_bytes
            budget = 16 if IS_TOY else 512
            engine = BenchmarkEngine(decoder, kv_bytes, budget, cuda_graphs=cuda_graphs)
            for setting in SETTING_NAMES:
                yield compare(f"{name}, {memory}", model, engine, setting, items, wanted)


def main() -> None:
    results = []
    for result in all_results():
        results.append(result)
        verdict = "ok" if result.is_good else "WRONG"
        print(
            f"{verdict:6}{result.case}: {result.equal} of {result.outputs} outputs equal, "
            f"{result.ties} differ from a tie on, {result.first_tokens_equal:.0%} of first tokens"
        )
    write_results("equality", map(asdict, results))
    if not all(result.is_good for result in results):
        sys.exit("the engine's tokens are not the reference's")


if __name__ == "__main__":
    main()
