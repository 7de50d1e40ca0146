"""Starts vLLM from what `gpu/join_peer.sh` unpacked, without a GPU, until it needs one.

    python -m gpu.try_peer PACKAGES

The interpreter has what the GPU's machine has. vLLM takes this machine for one with a Hopper GPU,
and a library that answers every call with "no device" stands in for the driver. Exit status 0: it
fails in want of a driver; 1: of something else.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu.absent_gpu import LIBRARY
from gpu.models import LLAMA_8B
from harness.contestant import BENCHMARKS, Contestant
from harness.environments import PEERS, PeerUnavailableError
from peers.protocol import Options

PEER = PEERS["vllm_gpu"]
WANTED = "RuntimeError: Found no NVIDIA driver on your system."
LINES = 12
# What vLLM's compiled libraries call the driver for.
CALLS = (
    *("cuCtxGetCurrent", "cuCtxSetCurrent", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain"),
    *("cuGetErrorString", "cuGetProcAddress_v2", "cuMemAddressFree", "cuMemAddressReserve"),
    *("cuMemCreate", "cuMemGetAllocationGranularity", "cuMemMap", "cuMemRelease"),
    *("cuMemSetAccess", "cuMemUnmap", "cuPointerGetAttribute", "cuTensorMapEncodeTiled"),
)
NO_DEVICE = 100
# vLLM asks its plugins which platform it runs on.
PLUGIN = """
import torch

class Properties:
    name, major, minor = "absent GPU", 9, 0
    total_memory, multi_processor_count, is_integrated = 80 * 2**30, 132, 0

def register():
    torch.cuda.get_device_capability = lambda *_: (Properties.major, Properties.minor)
    torch.cuda.get_device_name = lambda *_: Properties.name
    torch.cuda.get_device_properties = lambda *_: Properties
    torch.accelerator.device_count = lambda: 1
    return "vllm.platforms.cuda.CudaPlatform"
"""
ENTRY_POINTS = "[vllm.platform_plugins]\nabsent = absent_platform:register\n"
METADATA = "Metadata-Version: 2.1\nName: absent\nVersion: 1\n"


def make_plugin(folder: Path) -> None:
    """Put what makes vLLM believe in a GPU into a folder for the import path."""
    information = folder / "absent-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "absent_platform.py").write_text(PLUGIN)


def make_driver(folder: Path) -> None:
    """Put a library into `folder` that has the name of the driver's, and no device."""
    source = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in CALLS)
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([*command, "-o", str(folder / LIBRARY)], input=source, text=True, check=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m gpu.try_peer PACKAGES")
    packages = Path(sys.argv[1])
    if importlib.util.find_spec("pydantic") is not None:
        print("try_peer: this interpreter has pydantic, and the GPU's machine has not")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make_plugin(scratch)
        make_driver(scratch)
        LLAMA_8B.save_pretrained(scratch)
        log = scratch / "vllm.log"
        environment = {
            **PEER.environment,
            "LD_LIBRARY_PATH": str(scratch),
            "CUDA_VISIBLE_DEVICES": "",  # or vLLM would do without Triton, which finds no GPU
        }
        try:
            Contestant(
                PEER.name,
                Path(sys.executable),
                PEER.program,
                Options(scratch, "bfloat16", 1, 40 * 2**30, is_dummy=True),
                log,
                environment,
                import_paths=(BENCHMARKS, packages, scratch),
            ).close()
        except PeerUnavailableError as error:
            print(error)
        lines = log.read_text(errors="replace").splitlines()
    found = [number for number, line in enumerate(lines) if WANTED in line]
    last = found[-1] + 1 if found else len(lines)
    print("\n".join(lines[max(last - LINES, 0) : last]))
    sys.exit(0 if found else 1)


if __name__ == "__main__":
    main()
