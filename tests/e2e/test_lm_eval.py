"""EleutherAI's lm-evaluation-harness against a running server; transformers is the reference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.clients.environments import python_with
from tests.models import small_model
from trunkline.engine.config import EngineConfig

pytestmark = [pytest.mark.e2e, pytest.mark.clients]

RUN_SECONDS = 500
MAX_OUTPUT_TOKENS = 16

# Longer than a few pages of the KV cache, so that it is worth sharing.
PASSAGE = (
    "The harbour of Lindau lies on the northern shore of the lake. Its lighthouse was finished in "
    "1856, and stands opposite a lion of Bavarian marble. Every summer the boats from Bregenz and "
    "Rorschach bring visitors, most of whom stay for one night. The keeper of the lighthouse, Anna "
    "Huber, has counted them since 1998. She writes the number of each day on a blackboard beside "
    "the door, and in the evening she wipes it off with a green cloth."
)
QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Who keeps the lighthouse?", ("Anna Huber", "a lion", "The keeper of the lake", "Rorschach")),
    ("When was it finished?", ("1856", "1998", "in the summer", "Every evening")),
    ("What colour is the cloth?", ("green", "blue", "red", "black as the night")),
    ("Where is Lindau?", ("on the northern shore of the lake", "in Bregenz", "on the moon")),
)
# The model ends its answer here: `ending_model` sees to it. The request that asks for the text's
# likelihood ends there, too.
ENDED = (
    "<|im_start|>user\nSay hello.<|im_end|>\n"
    "<|im_start|>assistant\nHello! How can I help you today?"
)
TOPICS = ("The capital of France is", "Water boils at", "1, 2, 3, 4, 5,", "My favourite colour is")


@dataclass(frozen=True)
class Sample:
    """One request of the harness, and what it took from the server's answer."""

    context: Any  # a text, or an array of a conversation as JSON text
    argument: Any  # the continuation, or how to generate
    response: Any


class Reference:
    """The same model in transformers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @torch.inference_mode()
    def likelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """The continuation's log-likelihood, and whether each of its tokens is the likeliest."""
        ids = torch.tensor([context + continuation])
        logprobs = self.model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
        targets = ids[0, len(context) :]
        total = logprobs.gather(1, targets[:, None]).sum().item()
        return total, bool((logprobs.argmax(1) == targets).all())

    @torch.inference_mode()
    def answer(self, prompt: list[int], until: Sequence[str], max_tokens: int) -> str:
        """What is generated greedily, before the first of `until`."""
        ids = torch.tensor([prompt])
        generated = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        text: str = self.tokenizer.decode(generated[0, len(prompt) :], skip_special_tokens=True)
        for stop in until:
            text = text.split(stop, maxsplit=1)[0]
        return text

    def likeliest(self, text: str) -> str | None:
        """The likeliest next piece of text, unless it makes other tokens of the text."""
        ids = self.encode(text)
        piece = self.answer(ids, [], max_tokens=1)
        is_apart = piece.strip() and self.encode(text + piece)[:-1] == ids
        return piece if is_apart else None


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, made to end its answer after `ENDED`."""
    folder = tmp_path_factory.mktemp("model") / "ending"
    shutil.copytree(small_model(), folder)
    reference = Reference(folder)
    model, eos = reference.model, reference.tokenizer.eos_token_id
    with torch.inference_mode():
        last = model.model(torch.tensor([reference.encode(ENDED)])).last_hidden_state[0, -1]
        # Its logit is 20 there, and about 0 after texts that have nothing to do with it.
        model.lm_head.weight[eos] = 20 * last / last.square().sum()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> Reference:
    return Reference(model_folder)


@pytest.fixture(scope="module")
def questions(reference: Reference) -> list[tuple[str, tuple[str, ...]]]:
    """Each question's text with its choices; where it can be, the likeliest is one of them."""
    found = []
    for question, choices in QUESTIONS:
        text = f"{PASSAGE}\n\nQuestion: {question}\nAnswer:"
        likeliest = reference.likeliest(text)
        found.append(
            (text, tuple(f" {choice}" for choice in choices) + ((likeliest,) if likeliest else ()))
        )
    assert any(
        len(choices) > len(given) for (_, choices), (_, given) in zip(found, QUESTIONS, strict=True)
    )
    return found


@pytest.fixture(scope="module")
def site(shared_installation: Any, model_folder: Path) -> Any:
    shared_installation.start(
        *("--model", str(model_folder), "--dtype", "float32", "--kv-cache-bytes", str(2**26))
    )
    return shared_installation


def write_task(
    folder: Path, name: str, documents: Sequence[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """A task whose data are a file beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))  # YAML takes JSON


def write_tasks(folder: Path, questions: Sequence[tuple[str, Sequence[str]]]) -> None:
    folder.mkdir()
    write_task(
        *(folder, "choose"),
        [{"text": text, "choices": choices} for text, choices in questions],
        {
            "output_type": "multiple_choice",
            "doc_to_text": "text",
            "doc_to_choice": "choices",
            "target_delimiter": "",  # the choices begin with theirs
            "doc_to_target": 0,
            "metric_list": [{"metric": "acc"}],
        },
    )
    write_task(
        *(folder, "read"),
        [{"text": PASSAGE}, {"text": ENDED}],
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    )
    write_task(
        *(folder, "continue"),
        [{"topic": topic} for topic in TOPICS],
        {
            "output_type": "generate_until",
            "doc_to_text": "topic",
            "doc_to_target": "",
            "generation_kwargs": {
                "until": ["\n"],
                "max_gen_toks": MAX_OUTPUT_TOKENS,
                "do_sample": False,
            },
            "metric_list": [{"metric": "exact_match"}],
        },
    )


RunHarness = Callable[..., dict[str, list[Sample]]]


@pytest.fixture
def run_harness(site: Any, questions: Any, tmp_path: Path) -> RunHarness:
    """Runs tasks on the server; the samples of each task, in order."""
    python = python_with("lm-eval")
    tasks = tmp_path / "tasks"
    write_tasks(tasks, questions)

    def run(
        endpoint: str, model: str, names: Sequence[str], arguments: dict[str, Any], *options: str
    ) -> dict[str, list[Sample]]:
        output = tmp_path / "output" / model
        url = f"http://127.0.0.1:{site.port}/v1/{endpoint}"
        with site.client as client:
            (served,) = client.models.list()
        arguments = {"model": served.id, "base_url": url, **arguments}
        done = subprocess.run(
            [
                *(python, "-I", "-m", "lm_eval", "run", "--model", model),
                *("--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())),
                *("--tasks", ",".join(names), "--include_path", str(tasks)),
                *("--output_path", str(output), "--log_samples"),
                *options,
            ],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            env={
                "PATH": os.environ["PATH"],
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "1",  # nothing but the server is asked
            },
        )
        assert done.returncode == 0, f"{done.stderr}\n{site.log}"
        return {name: read_samples(output, name) for name in names}

    return run


def read_samples(folder: Path, task: str) -> list[Sample]:
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    samples = []
    for line in path.read_text().splitlines():
        logged = json.loads(line)
        for arguments, (response,) in zip(
            logged["arguments"].values(), logged["resps"], strict=True
        ):
            samples.append(Sample(arguments["arg_0"], arguments.get("arg_1"), response))
    return samples


def check_choices(samples: Sequence[Sample], questions: Any, reference: Reference) -> None:
    """Their likelihoods against transformers', for the same tokens."""
    assert len(samples) == sum(len(choices) for _, choices in questions)
    seen = set()
    for sample in samples:
        context = reference.encode(sample.context)
        whole = reference.encode(sample.context + sample.argument)
        assert whole[: len(context)] == context
        expected, is_greedy = reference.likelihood(context, whole[len(context) :])
        assert float(sample.response[0]) == pytest.approx(expected, abs=1e-3)
        assert sample.response[1] == str(is_greedy)
        seen.add(is_greedy)
    assert seen == {False, True}


def figures_since(site: Any, at: float) -> dict[str, Any]:
    """The engine's figures as they are after `at`, unix seconds."""
    url = f"http://127.0.0.1:{site.port}/v1/engines"

    def engine() -> dict[str, Any]:
        (only,) = httpx.get(url).json()["data"]
        found: dict[str, Any] = only
        return found

    site.wait_for(lambda: engine()["heartbeat_at"] > at, 30)
    figures: dict[str, Any] = engine()["figures"]
    return figures


def test_likelihoods_and_answers_are_those_of_transformers(
    site: Any, run_harness: RunHarness, reference: Reference, questions: Any, model_folder: Path
) -> None:
    before = figures_since(site, time.time())
    found = run_harness(
        *("completions", "local-completions", ["choose", "read", "continue"]),
        {"tokenizer": model_folder},
        *("--batch_size", "16"),
    )
    after = figures_since(site, time.time())
    num_cached, num_computed = (
        after[name] - before[name]
        for name in ("num_cached_prompt_tokens", "num_computed_prompt_tokens")
    )
    check_choices(found["choose"], questions, reference)
    bos = reference.tokenizer.bos_token_id
    assert reference.answer(reference.encode(ENDED), [], 1) == ""
    assert [sample.context for sample in found["read"]] == [PASSAGE, ENDED]
    for sample in found["read"]:
        expected, _ = reference.likelihood([bos], reference.encode(sample.context))
        assert float(sample.response) == pytest.approx(expected, abs=1e-3)
    assert [sample.context for sample in found["continue"]] == [*TOPICS]
    for sample in found["continue"]:
        assert sample.response == reference.answer(
            reference.encode(sample.context), ["\n"], MAX_OUTPUT_TOKENS
        )

    # All choices were in one request, and the context of each question was computed for one.
    page_size = EngineConfig().page_size
    seen: set[str] = set()
    num_shared = 0
    for sample in found["choose"]:
        if sample.context in seen:
            num_shared += len(reference.encode(sample.context)) // page_size * page_size
        seen.add(sample.context)
    assert num_cached >= num_shared
    prompts = [sample.context + sample.argument for sample in found["choose"]]
    prompts += [sample.context for sample in found["read"] + found["continue"]]
    num_tokens = sum(len(reference.encode(prompt)) for prompt in prompts) + len(found["read"])
    assert num_computed == num_tokens - num_cached


@pytest.mark.slow
def test_texts_and_chats_in_several_requests_at_once(
    site: Any, run_harness: RunHarness, reference: Reference, questions: Any, model_folder: Path
) -> None:
    concurrent = {"num_concurrent": 4}
    found = run_harness(
        *("completions", "local-completions", ["choose"]),
        {"tokenizer": model_folder, "tokenized_requests": False, **concurrent},
    )
    check_choices(found["choose"], questions, reference)
    found = run_harness(
        *("chat/completions", "local-chat-completions", ["continue"]),
        concurrent,
        "--apply_chat_template",
    )
    assert len(found["continue"]) == len(TOPICS)
    for sample in found["continue"]:
        messages = json.loads(sample.context[0])
        prompt = reference.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert sample.response == reference.answer(prompt.input_ids, ["\n"], MAX_OUTPUT_TOKENS)
