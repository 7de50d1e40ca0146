"""The engine gives the same greedy tokens under every setting as transformers' `generate`.

In float32, on a few requests of many workloads. The benchmarks run this before they time anything;
it ends with an error when tokens differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from harness.engine_run import SETTINGS, BenchmarkEngine, load_decoder
from harness.sizes import CPU_SIZES
from trunkline.engine.simulation.workloads import WorkItem, make_workload

REQUESTS = 8
SCALE = 0.03
KV_BYTES = 2**30
BUDGET = 256


def reference_outputs(folder: Path, items: list[WorkItem]) -> list[list[int]]:
    """By transformers, one request at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    outputs = []
    for item in items:
        prompt = torch.from_numpy(item.prompt).long().unsqueeze(0)
        found = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=item.num_output_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        outputs.append(found[0, len(item.prompt) :].tolist())
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of safetensors")
    folder = parser.parse_args().model
    items = {name: make_workload(name, REQUESTS, scale=SCALE) for name in CPU_SIZES}
    flat = [item for workload in items.values() for item in workload]
    wanted = reference_outputs(folder, flat)
    decoder = load_decoder(folder, torch.float32, torch.device("cpu"))
    engine = BenchmarkEngine(decoder, KV_BYTES, BUDGET)
    for label, setting in SETTINGS.items():
        found = engine.run(flat, setting).outputs
        wrong = sum(a != b for a, b in zip(found, wanted, strict=True))
        if wrong:
            sys.exit(f"{label}: {wrong} of {len(flat)} outputs differ from transformers'")
    print(f"{len(flat)} outputs equal transformers' under {', '.join(SETTINGS)}", file=sys.stderr)


if __name__ == "__main__":
    main()
