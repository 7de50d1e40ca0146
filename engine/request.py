"""A request on its way through the engine: what came in, what runs for it, what was refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trunkline.engine.answers.format import AnswerFormat
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.parse import AnyRequest
from trunkline.engine.sequence import Sequence


@dataclass(frozen=True)
class Line:
    """A request, as the engine gets it: one line of a batch file, or one that a client waits for.

    Attributes:
        batch_id: of the batch; of the request itself when a client waits.
        line: from 1.
        deadline: unix seconds.
        is_live: a client waits for the answer, and may want it as a stream.
    """

    batch_id: str
    line: int
    custom_id: str
    endpoint: str
    body: dict[str, Any]
    deadline: float = 0.0
    priority: int = 0
    is_live: bool = False


@dataclass(eq=False)
class Request:
    """A line that is being answered: as many sequences for each of its prompts.

    Attributes:
        format: how answers are read.
        pooling: how vectors are made, where the answer is made of vectors.
    """

    line: Line
    body: AnyRequest
    sequences: list[Sequence]
    num_prompt_tokens: int  # each prompt counted once
    num_unfinished: int  # sequences
    format: AnswerFormat = field(default_factory=AnswerFormat)
    pooling: PoolingConfig | None = None


@dataclass(frozen=True)
class Refusal:
    """A line that cannot be answered."""

    line: Line
    error: RequestError
