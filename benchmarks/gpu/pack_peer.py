"""Packs vLLM for a GPU's machine that reaches no package index and takes little at a time.

    python -m gpu.pack_peer [FOLDER]

fetches the wheels, keeps what offline generation on a Hopper GPU needs of them, and writes it into
FOLDER (gpu/peer-pack unless given) as parts below 60 MiB. Needs pip and no GPU. On the machine,
`gpu/join_peer.sh` puts the parts together.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from gpu.fatbin import for_gpu
from harness.environments import PEERS, cache_folder

FOLDER = Path(__file__).with_name("peer-pack")
PART_BYTES = 60 * 10**6
ARCHIVE, SUMS = "site.tar.xz", "parts.sha256"
PRESET = 9 | lzma.PRESET_EXTREME

# vLLM, and what `from vllm import LLM` imports beside the packages that the machine has.
WHEELS = (
    *PEERS["vllm_gpu"].requirements,
    "annotated-types==0.8.0",
    "apache-tvm-ffi==0.1.15.post2",
    "cachetools==8.0.2",
    "cbor2==6.3.0",
    "compressed-tensors==0.17.0",
    "fastapi==0.136.0",
    "httpx2==2.16.2",
    "llguidance==1.7.6",
    "loguru==0.7.3",
    "msgspec==0.22.0",
    "openai==3.57.0",
    "openai-harmony==0.0.8",
    "partial-json-parser==0.2.1.1.post7",
    "pybase64==1.5.1",
    "pydantic==2.14.4",
    "pydantic-core==2.50.5",
    "pyzmq==27.3.0",
    "sniffio==1.3.1",
    "starlette==1.10.0",
    "typing-extensions==4.16.0",
    "typing-inspection==0.4.5",
    "xgrammar==0.2.8",
)
PIP = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.12")
PIP += ("--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none")
# pip takes a name for these alone, and no later ones for earlier.
TAGS = (*(f"manylinux_2_{minor}" for minor in range(39, 4, -1)), "manylinux2014", "manylinux1")

# What one decoder in bfloat16 on a Hopper GPU does without.
LEFT_OUT = (
    "vllm/vllm_flash_attn/_vllm_fa2_C.*",  # FlashAttention 3 is what it takes there
    "vllm/vllm-rs",  # a server
    "vllm/_rust_tool_parser.*",
    "vllm/spinloop.*",
    "vllm/entrypoints/serve/instrumentator/static/*",
    "vllm/benchmarks/*",
    "vllm/_moe_C_stable_libtorch.*",  # experts
    "vllm/model_executor/layers/fused_moe/configs/*",
    "vllm/kernels/helion/configs/*",  # quantised weights
    "vllm/third_party/deep_gemm/*",
    "vllm/_qutlass_C.*",
    "vllm/_flashmla_*",  # other kinds of attention
    "vllm/third_party/fmha_sm100/*",  # other GPUs
    "vllm/third_party/tml_fa4/*",
    "*.jpg",
    "*.pyi",
    "*.dist-info/RECORD",
    "*.data/*",  # programs to call
)


def download(folder: Path) -> list[Path]:
    """The wheels, in `folder`, which keeps them for the next time."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [word for tag in TAGS for word in ("--platform", f"{tag}_x86_64")]
    command = [sys.executable, "-m", "pip", *PIP, *platforms, "--dest", str(folder)]
    subprocess.run([*command, *WHEELS], check=True)
    return [wheel_of(requirement, folder) for requirement in WHEELS]


def wheel_of(requirement: str, folder: Path) -> Path:
    """The wheel of `NAME==VERSION` among those of a folder."""
    name, version = requirement.split("==")
    found = list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if len(found) != 1:
        raise SystemExit(f"pack_peer: {len(found)} wheels of {requirement} in {folder}")
    return found[0]


def is_wanted(name: str) -> bool:
    """Whether a wheel's file is packed."""
    return not name.endswith("/") and not any(fnmatchcase(name, left) for left in LEFT_OUT)


def pack(wheels: Iterable[Path], archive: Path) -> dict[str, int]:
    """Write the wanted files of the wheels as one archive; the bytes of each wheel's."""
    sizes = {}
    with tarfile.open(archive, "w:xz", preset=PRESET) as target:
        for wheel in wheels:
            sizes[wheel.name] = 0
            with zipfile.ZipFile(wheel) as source:
                for name in sorted(filter(is_wanted, source.namelist())):
                    content = source.read(name)
                    if ".so" in Path(name).suffixes:
                        content = for_gpu(content)
                    entry = tarfile.TarInfo(name)  # without times: the same wheels, the same parts
                    entry.size, entry.mode = len(content), 0o644
                    target.addfile(entry, io.BytesIO(content))
                    sizes[wheel.name] += len(content)
    return sizes


def split(archive: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Put parts in the place of the archive, and their checksums beside them."""
    content = archive.read_bytes()
    starts = range(0, len(content), part_bytes)
    parts = [archive.with_name(f"{archive.name}.{number:02}") for number in range(len(starts))]
    for start, part in zip(starts, parts, strict=True):
        part.write_bytes(content[start : start + part_bytes])
    sums = [f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n" for part in parts]
    archive.with_name(SUMS).write_text("".join(sums))
    archive.unlink()
    return parts


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob(f"{ARCHIVE}*"), *folder.glob(SUMS)):
        old.unlink()
    wheels = download(cache_folder() / "peer-wheels")
    for name, size in pack(wheels, folder / ARCHIVE).items():
        fetched = (wheels[0].parent / name).stat().st_size
        print(f"{fetched / 1e6:8.1f} MB fetched {size / 1e6:8.1f} MB kept  {name}")
    parts = split(folder / ARCHIVE)
    for part in parts:
        print(f"{part.stat().st_size / 2**20:8.2f} MiB  {part}")
    total = sum(part.stat().st_size for part in parts)
    print(f"{total / 2**20:8.2f} MiB in all, {len(parts)} to bring along, one at a time")


if __name__ == "__main__":
    main()
