#!/usr/bin/env bash
# Checks and measures on a GPU machine what the checkout holds. Needs torch, triton, transformers and
# numpy, and no installation of the package.
#
#   benchmarks/gpu/run.sh                        every part
#   benchmarks/gpu/run.sh kernels kernel-bench   some
#   benchmarks/gpu/run.sh --toy                  tiny sizes on a CPU, in Triton's interpreter
#
# OUT      folder for the results, benchmarks/results unless given
# PYTHON   the interpreter, python3 unless given
# SECONDS_PER_PART   most seconds of one part, 590 unless given
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
limit=${SECONDS_PER_PART:-590}
export OUT=${OUT:-$root/benchmarks/results}
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$root/src:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}

all=(kernels equality kernel-bench end-to-end profile peer)
declare -A modules=(
  [kernels]=gpu.check_kernels [equality]=gpu.check_equality [kernel-bench]=gpu.time_kernels
  [end-to-end]=gpu.end_to_end [profile]=gpu.profile_step [peer]=gpu.peer
)
parts=()
for argument in "$@"; do
  if [ "$argument" = --toy ]; then
    export TRUNKLINE_BENCH_TOY=1
  elif [ -n "${modules[$argument]:-}" ]; then
    parts+=("$argument")
  else
    echo "run.sh: there is no part '$argument'; allowed are --toy ${all[*]}" >&2
    exit 2
  fi
done
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")
if [ "${TRUNKLINE_BENCH_TOY:-0}" = 1 ]; then
  export TRITON_INTERPRET=1
fi
mkdir -p "$OUT"

failed=()
for part in "${parts[@]}"; do
  echo "== $part"
  rm -f "$OUT/gpu-$part.jsonl" # what an earlier call found says nothing about this one
  timeout --kill-after=20 "$limit" "$python" -m "${modules[$part]}" || failed+=("$part")
done
"$python" -m gpu.summary "${parts[@]}"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
