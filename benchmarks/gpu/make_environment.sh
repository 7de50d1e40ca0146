#!/usr/bin/env bash
# Makes the environment that Triton's cache is filled in: the versions of the GPU's machine.
#
#   benchmarks/gpu/make_environment.sh FOLDER
#
# PYTHON   a Python 3.12, python3.12 unless given
#
# A folder with these versions is left as it is. Prints the environment's interpreter.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: make_environment.sh FOLDER" >&2
  exit 2
fi
folder=$1
packages=(torch==2.11.0 triton==3.6.0 transformers==5.17.0 numpy==2.5.2 typer rich)
# What a compiled kernel depends on: Triton, and for the C around it the minor version of Python.
check='
import sys
from importlib.metadata import version
wanted = {"torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0", "numpy": "2.5."}
sys.exit(sys.version_info[:2] != (3, 12) or any(not version(k).startswith(v) for k, v in wanted.items()))
'

is_made() {
  [ -x "$folder/bin/python" ] && "$folder/bin/python" -c "$check" 2>/dev/null
}

if ! is_made; then
  [ -x "$folder/bin/python" ] || "${PYTHON:-python3.12}" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet "${packages[@]}" >&2
  is_made || {
    echo "make_environment.sh: $folder has other versions than ${packages[*]}" >&2
    exit 1
  }
fi
echo "$folder/bin/python"
