"""`trunkline run` and `trunkline plan`: a batch file without a server.

The output grows line by line while the run goes on, so that an interrupted run loses only what was
not yet written; the next run reads what is there and does the rest.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trunkline.engine.admission import Admission, Limits
from trunkline.engine.assemble import Assembly, assemble
from trunkline.engine.config import EngineConfig
from trunkline.engine.default_model import resolve_model
from trunkline.engine.encoder.config import is_encoder
from trunkline.engine.grammar import Grammars
from trunkline.engine.model.config import load_config
from trunkline.engine.outcome import answered, refused
from trunkline.engine.pooling import read_pooling
from trunkline.engine.prefix_tree import PrefixTree, Prompts
from trunkline.engine.prompt_reading import Pooling
from trunkline.engine.request import Line, Refusal, Request
from trunkline.engine.savings import Savings, estimate_savings
from trunkline.engine.simulation.workloads import WorkItem
from trunkline.engine.tokenizer import Tokenizer
from trunkline.store.batch_file import BatchFileError, output_line, read_batch_file
from trunkline.store.records import Outcome

# `run` has no batch; its requests' seeds and response ids say so.
BATCH_ID = "run"
FLUSH_SECONDS = 0.5


class OfflineError(Exception):
    """The run cannot be done as asked. The message says why, one line or a few."""


@dataclass
class RunStats:
    """Figures of a run. Tokens and seconds cover what this run did, not what it found done."""

    load_seconds: float = 0.0
    seconds: float = 0.0  # from the first step to the last line written
    tokenize_seconds: float = 0.0
    plan_seconds: float = 0.0
    requests: int = 0
    failed: int = 0
    already_done: int = 0
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    peak_kv_tokens: int = 0
    steps: int = 0
    interrupted: bool = field(default=False)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        if self.interrupted:
            return (
                f"stopped: {self.requests} requests done now, {self.already_done} before; "
                "run the same command again for the rest"
            )
        if not self.requests:
            return f"nothing to do: all {self.already_done} requests were done before"
        saved = 1 - self.computed_prompt_tokens / max(self.prompt_tokens, 1)
        rate = (self.prompt_tokens + self.output_tokens) / max(self.seconds, 1e-9)
        return (
            f"{self.requests} requests in {self.seconds:.1f} s: {rate:.0f} tokens/s, "
            f"{100 * saved:.1f} % of the prompt tokens were shared"
        )


class ResultFile:
    """A JSONL file of results that is appended to, and survives being cut off mid-line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self.flush()
            self._file.close()

    def read_custom_ids(self) -> set[str]:
        """The requests that have a result; a last line that was cut off is removed.

        Raises:
            OfflineError: the file holds something else than results.
        """
        found: set[str] = set()
        if not self.path.exists():
            return found
        complete = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    found.add(json.loads(line)["custom_id"])
                except (ValueError, KeyError, TypeError):
                    raise OfflineError(
                        f"{self.path} line {number} is not a result of an earlier run; "
                        "give another output file"
                    ) from None
                complete += len(line)
        if complete < self.path.stat().st_size:
            os.truncate(self.path, complete)
        return found

    def append(self, line: bytes) -> None:
        if self._file is None:
            # Opened at the first result: a run without failures leaves no file of errors.
            self._file = self.path.open("ab")
        self._file.write(line)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())


def run_file(config: EngineConfig, source: Path, output: Path, errors: Path) -> RunStats:
    """Answer the batch file `source`; successes go to `output`, failed requests to `errors`.

    Raises:
        OfflineError: a file cannot be used; nothing was run.
        ConfigError: see `assemble`.
    """
    stats = RunStats()
    lines = _read_lines(source)
    with ResultFile(output) as results, ResultFile(errors) as failures, ExitStack() as stack:
        done = results.read_custom_ids() | failures.read_custom_ids()
        foreign = done - {line.custom_id for line in lines}
        if foreign:
            raise OfflineError(
                f"{output} holds results of other requests ({min(foreign)!r} is not a custom_id "
                f"of {source}); give another output file"
            )
        stats.already_done = len(done)
        todo = [line for line in lines if line.custom_id not in done]
        if not todo:
            return stats
        assembly = assemble(config)
        stats.load_seconds = assembly.load_seconds
        _check_model(todo, assembly.model_name)
        interrupted = stack.enter_context(_interrupts())
        progress = stack.enter_context(_progress())
        _answer(assembly, todo, results, failures, stats, interrupted, progress)
    return stats


def _answer(
    assembly: Assembly,
    lines: list[Line],
    results: ResultFile,
    failures: ResultFile,
    stats: RunStats,
    interrupted: threading.Event,
    progress: Progress,
) -> None:
    engine = assembly.engine
    started = time.perf_counter()
    task = progress.add_task("tokenizing", total=len(lines))
    requests: list[Request] = []
    refusals: list[Refusal] = []
    for admitted in assembly.admission.admit(lines):
        progress.advance(task)
        if isinstance(admitted, Request):
            requests.append(admitted)
        else:
            refusals.append(admitted)
    stats.tokenize_seconds = time.perf_counter() - started

    custom_ids = {line.line: line.custom_id for line in lines}

    def write(outcome: Outcome) -> None:
        record = output_line(custom_ids[outcome.line], outcome)
        (results if outcome.status_code == 200 else failures).append(record)
        stats.requests += 1
        stats.failed += outcome.status_code != 200
        stats.prompt_tokens += outcome.num_prompt_tokens
        stats.output_tokens += outcome.num_output_tokens
        progress.advance(task)

    progress.reset(task, description="answering", total=len(lines))
    for refusal in refusals:
        write(refused(refusal))
    planning = time.perf_counter()
    engine.add(requests)
    first_step = last_flush = time.perf_counter()
    stats.plan_seconds = first_step - planning
    while engine.has_work and not interrupted.is_set():
        for request in engine.step():
            write(answered(request, engine.tokenizer, int(time.time())))
        if time.perf_counter() - last_flush > FLUSH_SECONDS:
            results.flush()
            last_flush = time.perf_counter()
    results.flush()
    failures.flush()
    stats.seconds = time.perf_counter() - first_step
    stats.interrupted = interrupted.is_set()
    counts = engine.counts()
    stats.computed_prompt_tokens = counts.num_computed_prompt_tokens
    stats.preemptions = counts.num_preemptions
    stats.peak_kv_tokens = counts.peak_kv_tokens
    stats.steps = counts.num_steps


@dataclass(frozen=True)
class FilePlan:
    """What there is to know about a batch file before it runs."""

    savings: Savings
    tree: PrefixTree
    items: list[WorkItem]  # its requests, for the simulator


def plan_file(config: EngineConfig, source: Path) -> FilePlan:
    """Plan the batch file `source`.

    Raises:
        OfflineError: the file cannot be used.
    """
    lines = _read_lines(source)
    folder = resolve_model(config.model, config.cache_dir.expanduser())
    if is_encoder(folder):
        raise OfflineError(
            f"{config.model} reads each text by itself: there are no prefixes to share and to plan"
        )
    model, tokenizer = load_config(folder), Tokenizer(folder)
    admission = Admission(
        tokenizer,
        Limits(model.max_context_tokens, model.max_context_tokens),
        Grammars(tokenizer, model.vocab_size),
        read_pooling(folder, Pooling.LAST),
        model.hidden_size,
    )
    started = time.perf_counter()
    admitted = [item for item in admission.admit(lines) if isinstance(item, Request)]
    tokenize_seconds = time.perf_counter() - started
    sequences = [sequence for request in admitted for sequence in request.sequences]
    savings, tree = estimate_savings(
        Prompts.from_lists([sequence.prompt for sequence in sequences]),
        config.page_size,
        sum(sequence.sampling.max_tokens for sequence in sequences),
        tokenize_seconds,
    )
    items = [WorkItem(s.prompt, s.sampling.max_tokens) for s in sequences]
    return FilePlan(savings, tree, items)


def _read_lines(source: Path) -> list[Line]:
    try:
        with source.open("rb") as file:
            parsed = read_batch_file(file)
    except OSError as error:
        raise OfflineError(f"cannot read {source}: {error.strerror}") from None
    except BatchFileError as error:
        raise OfflineError(f"{source} is not a batch file:\n{error}") from None
    return [Line(BATCH_ID, p.line, p.custom_id, p.url, p.body) for p in parsed]


def _check_model(lines: list[Line], served: str) -> None:
    wanted = lines[0].body.get("model")
    if wanted != served:
        raise OfflineError(
            f"the requests ask for the model {wanted!r}, and {served!r} is loaded; "
            f"give --model, or --served-model-name {wanted!r}"
        )


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the step under way is finished first."""
    event = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: event.set()) for number in numbers]
    try:
        yield event
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
