"""Part `smoke`: kernels load, the engine runs here at all, and with CUDA graphs as without.

Two layers of a real shape, with a batch of shared prefixes. In float32 the tokens are equal. In
bfloat16 graphs may round in other ways, since they pad rows: there, most are.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch

from gpu.launches import warm
from gpu.machine import IS_TOY, capability, device, dtype_name, hardware, kernels, memory_bytes
from gpu.models import of_layers, shapes
from gpu.parts import Case, Record
from harness.engine_run import PAGE_SIZE, BenchmarkEngine, random_decoder
from harness.sizes import TOY_SIZES, Size
from trunkline.engine.kv_cache import kv_bytes_per_token
from trunkline.engine.model.config import config_from_hf
from trunkline.engine.simulation.simulate import PLANNED
from trunkline.kernels.gpu.launch import num_processors

NUM_LAYERS = 1 if IS_TOY else 2
# Prompts take several steps, the last of them beside decode; some numbers of rows are padded.
BATCH, STEP_TOKENS = (TOY_SIZES["W1-4"], 16) if IS_TOY else (Size("W1-4", 19, 0.15), 512)
KINDS = (torch.float32,) if IS_TOY else (torch.bfloat16, torch.float32)
# Of the tokens in bfloat16, until an output first differs: after that everything does. Of random
# logits about every tenth choice is within the rounding; wrong states agree by chance alone.
LEAST_AGREEMENT = 0.2


@dataclass(frozen=True)
class Agreement:
    """The tokens with graphs beside those without."""

    case: str
    outputs: int
    equal: int
    agreement: float  # tokens before an output first differs, of all
    is_good: bool


def describe_device() -> Iterator[Record]:
    yield {
        "case": "device",
        "capability": capability(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "processors": num_processors(device()),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "step_tokens": hardware().step_tokens,
    }


def load_kernels() -> Iterator[Record]:
    """All that the parts launch; what was not found compiled is compiled now."""
    started = time.perf_counter()
    warm(device())
    found = kernels()
    yield {
        "case": "compiled kernels",
        "found": len(found.hits),
        "compiled_here": sorted(found.misses.values()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def compare_graphs(kind: torch.dtype) -> Iterator[Record]:
    torch.backends.cuda.matmul.allow_tf32 = False
    config = config_from_hf(of_layers(next(iter(shapes().values())), NUM_LAYERS))
    decoder = random_decoder(config, kind, device())
    items = BATCH.make()
    num_tokens = sum(len(item.prompt) + item.num_output_tokens + PAGE_SIZE for item in items)
    kv_bytes = 2 * num_tokens * kv_bytes_per_token(config, kind)
    outputs = []
    for cuda_graphs in (False, True):
        engine = BenchmarkEngine(decoder, kv_bytes, STEP_TOKENS, cuda_graphs=cuda_graphs)
        engine.record_graphs()
        outputs.append(engine.run(items, PLANNED).outputs)
    pairs = list(zip(*outputs, strict=True))
    agreeing = sum(num_agreeing(*pair) for pair in pairs)
    agreement = agreeing / sum(item.num_output_tokens for item in items)
    equal = sum(mine == other for mine, other in pairs)
    yield asdict(
        Agreement(
            case=f"graphs on and off, {dtype_name(kind)}",
            outputs=len(items),
            equal=equal,
            agreement=round(agreement, 4),
            is_good=(
                equal == len(items) if kind == torch.float32 else agreement >= LEAST_AGREEMENT
            ),
        )
    )


def num_agreeing(mine: list[int], other: list[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(mine, other, strict=True))
    return next((place for place, (a, b) in pairs if a != b), len(mine))


def cases() -> Iterator[Case]:
    yield Case("device", describe_device)
    yield Case("compiled kernels", load_kernels)
    for kind in KINDS:
        yield Case(f"graphs on and off, {dtype_name(kind)}", partial(compare_graphs, kind))


def line(record: Record) -> str:
    if record["case"] == "device":
        return (
            f"{record['device']}: capability {record['capability']}, {record['memory_gib']} GiB, "
            f"{record['processors']} processors, steps of {record['step_tokens']}"
        )
    if record["case"] == "compiled kernels":
        return (
            f"{record['found']} kernels found compiled, {len(record['compiled_here'])} compiled "
            f"here, in {record['seconds']} s"
        )
    verdict = "ok" if record["is_good"] else "WRONG"
    return (
        f"{verdict:6}{record['case']}: {record['equal']} of {record['outputs']} outputs equal, "
        f"{record['agreement']:.1%} of the tokens until they differ"
    )
