#!/usr/bin/env bash
# Checks and measures on a GPU machine what the checkout holds, in less than ten minutes. Needs torch,
# triton, transformers and numpy, and no installation of the package.
#
#   benchmarks/gpu/run.sh                        smoke kernels kernel-bench end-to-end profile equality
#   benchmarks/gpu/run.sh kernels kernel-bench   some of them
#   benchmarks/gpu/run.sh peer                   beside vLLM, which takes a run of its own
#   benchmarks/gpu/run.sh --toy                  tiny sizes on a CPU, in Triton's interpreter
#
# Every result is in its file as soon as it is known: a run may be cut at any second.
#
# OUT                folder for the results, benchmarks/results unless given
# PYTHON             the interpreter, python3 unless given
# SECONDS_OVERALL    most seconds of the run, 570 unless given
# SECONDS_PER_PART   most seconds of each part, its own budget (gpu/parts.py) unless given
# STEP_TOKENS        most rows of a step that end-to-end tries, 2048,4096,8192 unless given
# GRAPH_ROWS         most rows of a step that is recorded in a CUDA graph, 4096 unless given
# PEER_PACKAGES      folder of vLLM and what it needs, which gpu/join_peer.sh prints; not given: the
#                    packages of the interpreter
# KERNEL_CACHE       folder with compiled kernels that `python -m gpu.fill_cache` has filled,
#                    benchmarks/gpu/kernel-cache unless given; what it lacks is compiled into it
# BENCHMARK_COMMIT   names the commit where git cannot
#
# Exit status: 0 when every part ran and every check is good; 124 when the time ran out.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export OUT=${OUT:-$root/benchmarks/results}
export KERNEL_CACHE=${KERNEL_CACHE:-$root/benchmarks/gpu/kernel-cache}
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$root/src:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}

# In the foreground: a process group of its own would outlive one that is killed.
exec timeout --foreground --kill-after=20 "${SECONDS_OVERALL:-570}" \
  "${PYTHON:-python3}" -m gpu.run "$@"
