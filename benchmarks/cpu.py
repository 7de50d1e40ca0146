"""The plan beside the engine's own baselines on this CPU, with the embedded default model.

    make bench                                          the workloads, ours alone
    python benchmarks/cpu.py --workloads W1,W8 --peers  some of them, also by other engines

Every workload runs under each setting in turn, several times; what is printed are medians and
ratios within the run, because absolute seconds on a shared CPU mean little. Before anything is
timed, the outputs of all settings are compared token by token in float32.
"""

from __future__ import annotations

from harness.cpu_call import parse_call, run_call
from harness.engine_run import SETTINGS
from harness.sizes import CPU_SIZES


def main() -> None:
    run_call(parse_call("cpu", __doc__, CPU_SIZES, peers="", settings=",".join(SETTINGS)))


if __name__ == "__main__":
    main()
