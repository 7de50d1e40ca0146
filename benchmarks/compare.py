"""Trunkline beside other engines on this CPU, with the embedded default model in bfloat16.

    python benchmarks/compare.py [--peers vllm_cpu] [--rows benchmarks/results/compare.jsonl]

Four workloads of equal work: the same prompts, and outputs of a fixed length. The engines run in
turn, each as a process of its own with all processors, and stand still while another one runs.
Starting, loading and warming up are not timed.
"""

from __future__ import annotations

from harness.cpu_call import parse_call, run_call
from harness.environments import CPU_PEERS
from harness.sizes import COMPARISON_SIZES
from trunkline.engine.simulation.simulate import PLANNED


def main() -> None:
    peers = ",".join(CPU_PEERS)
    run_call(parse_call("compare", __doc__, COMPARISON_SIZES, peers, settings=PLANNED.label))


if __name__ == "__main__":
    main()
