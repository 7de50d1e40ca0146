"""How a benchmark talks to a program that answers prompts: one JSON object a line, both ways.

The program's first line is `{"ready": VERSION, "details": {…}}`. Then every line that it reads

    {"job": PATH, …}     answers all prompts of the job once, without stopping at an end token

and prints `{"seconds": …, "output_tokens": …, "outputs_head": […], "details": {…}}`, or
`{"error": …}`. It ends with its standard input. A job is a JSON file of `prompts` (token ids) and
`output_lengths` (tokens). Further fields of a request are options of the program.

Needs the standard library alone: peers run in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

# Tokens of each output that go back, to see that two engines do the same work.
HEAD_TOKENS = 4
HEAD_REQUESTS = 8


@dataclass(frozen=True)
class Job:
    """Prompts of token ids, and how many tokens each is to generate."""

    prompts: list[list[int]]
    output_lengths: list[int]

    @classmethod
    def read(cls, path: Path) -> Job:
        content = json.loads(path.read_text())
        return cls(content["prompts"], content["output_lengths"])

    def write(self, path: Path) -> None:
        content = {"prompts": self.prompts, "output_lengths": self.output_lengths}
        path.write_text(json.dumps(content))


@dataclass(frozen=True)
class Answer:
    """One run of a job."""

    seconds: float
    outputs: list[list[int]]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What every program is started with."""

    model: Path  # folder of config.json and safetensors
    dtype: str  # a torch dtype's name
    threads: int
    kv_bytes: int  # size of the KV cache
    is_dummy: bool  # random weights: the folder has no more than a configuration


class Answerer(Protocol):
    """An engine with its model loaded and warmed up."""

    version: str
    details: Mapping[str, Any]  # of the machine, as the engine sees it

    def run(self, job: Job, request: Mapping[str, Any]) -> Answer:
        """Answer every prompt of `job`; only that is timed."""
        ...


def serve(load: Callable[[Options], Answerer]) -> None:
    """Load the engine and answer jobs until the standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kv-bytes", type=int, default=2 * 2**30)
    parser.add_argument("--dummy", action="store_true")
    given = parser.parse_args()
    # Libraries print on the standard output what is not part of the protocol.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(content: Mapping[str, Any]) -> None:
        print(json.dumps(content), file=replies, flush=True)

    answerer = load(Options(given.model, given.dtype, given.threads, given.kv_bytes, given.dummy))
    reply({"ready": answerer.version, "details": answerer.details})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            job = Job.read(Path(request["job"]))
            answer = answerer.run(job, request)
            _check_lengths(job, answer)
        except Exception as error:  # whatever a peer raises goes to who asked
            reply({"error": f"{type(error).__name__}: {error}"})
            continue
        reply(
            {
                "seconds": answer.seconds,
                "output_tokens": sum(map(len, answer.outputs)),
                "outputs_head": [out[:HEAD_TOKENS] for out in answer.outputs[:HEAD_REQUESTS]],
                "details": answer.details,
            }
        )


def _check_lengths(job: Job, answer: Answer) -> None:
    lengths = [len(output) for output in answer.outputs]
    if lengths != job.output_lengths:
        wrong = sum(a != b for a, b in zip(lengths, job.output_lengths, strict=False))
        raise RuntimeError(
            f"{len(lengths)} outputs for {len(job.prompts)} prompts, "
            f"{wrong} of them not of the length asked for"
        )
