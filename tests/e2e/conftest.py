"""An installation as a user runs it, `trunkline serve` in a process of its own; a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
from openai.types import Batch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support import free_port

TERMINAL = {"completed", "failed", "expired", "cancelled"}
START_SECONDS = 240.0  # the first start fetches and converts the default model


class Installation:
    """A data folder, and the processes that work on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_path = folder / "serve.log"
        self.port = free_port()
        self.environment: dict[str, str] = {}  # beside that of the tests
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="unused")

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def start(self, *options: str) -> None:
        """Start the server, and wait until an engine is ready too."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "trunkline", "serve"),
                    *("--port", str(self.port), "--data-dir", str(self.folder / "data")),
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONSAFEPATH": "1", **self.environment},
            )
        self.wait_for(self.engine_is_ready, START_SECONDS)

    def engine_is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server has ended:\n{self.log}"
        try:
            ready = httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return bool(ready["engine_alive"])

    def engines(self) -> list[psutil.Process]:
        """The engine's process, or none while it is down."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it ends just now; a zombie is one as well
                if "engine" in child.cmdline():
                    found.append(child)
        return found

    def kill_engine(self) -> None:
        """SIGKILL to the engine; returns when it is gone."""
        (engine,) = self.engines()
        engine.kill()
        self.wait_for(lambda: engine not in self.engines(), 60)

    def kill(self) -> None:
        """SIGKILL to every process of the installation at once."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> int:
        """Ask the server to stop; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self.process = None
        return status

    def submit(self, endpoint: str, lines: Sequence[Mapping[str, Any]]) -> Batch:
        """Upload lines of a batch, and create it."""
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        uploaded = self.client.files.create(file=("in.jsonl", content), purpose="batch")
        return self.client.batches.create(
            input_file_id=uploaded.id,
            endpoint=endpoint,  # type: ignore[arg-type]  # its type lists OpenAI's only
            completion_window="24h",
        )

    def wait_for_end(self, batch_id: str) -> Batch:
        self.wait_for(lambda: self.client.batches.retrieve(batch_id).status in TERMINAL, 240)
        return self.client.batches.retrieve(batch_id)

    def results(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file; none, if there is no file."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s\n{self.log}"
            time.sleep(0.1)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An installation that is not running yet; whatever runs at the end is killed."""
    made = Installation(tmp_path)
    yield made
    if made.process is not None:
        made.kill()


@pytest.fixture(scope="module")
def shared_installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Like `installation`, one for all tests of a module."""
    made = Installation(tmp_path_factory.mktemp("shared-installation"))
    yield made
    try:
        if made.process is not None:
            assert made.stop() == 0
    finally:
        if made.process is not None:
            made.kill()


CHAT_TEMPLATE = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


MakeTinyModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> MakeTinyModel:
    """Makes folders of random models with a token per byte. They talk nonsense, and at once.

    The function takes a chat template, and markers that are to be special tokens.
    """

    def make(chat_template: str = CHAT_TEMPLATE, markers: Sequence[str] = ()) -> Path:
        folder = tmp_path_factory.mktemp("tiny-model")
        vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
        tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = ByteLevelDecoder()
        tokenizer.add_special_tokens(list(markers))
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<end>", chat_template=chat_template
        )
        fast.save_pretrained(folder)
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=4096,
                eos_token_id=fast.eos_token_id,
                bos_token_id=None,
            )
        ).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(make_tiny_model: MakeTinyModel) -> Path:
    """The folder of a random model of no family in particular."""
    return make_tiny_model()
