"""The body of `/v1/embeddings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from trunkline.engine.requests.body import Refused, RequestBody
from trunkline.engine.requests.errors import missing_parameter
from trunkline.engine.requests.prompts import Prompts, read_prompts

# What vLLM's pooling endpoints have besides.
REFUSED_IN_POOLING: Mapping[str, Refused] = {
    "truncate_prompt_tokens": Refused((), "Send a text that fits."),
    "add_special_tokens": Refused((True,), "Send token ids."),
    "softmax": Refused(),
    "activation": Refused(),
    "use_activation": Refused((True,)),
}


class EmbeddingRequest(RequestBody):
    """The body of a `/v1/embeddings` request."""

    prompts: Prompts
    dimensions: int | None = Field(None, ge=1)
    normalize: bool | None = None  # None: as the model is made to be used
    encoding_format: Literal["float", "base64"] = "float"

    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {"prompts": ("input",)}
    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED_IN_POOLING,
        "messages": Refused((), "Send 'input'."),
        "embed_dtype": Refused(("float32",)),
        "stream": Refused((False,), "An embedding comes whole."),
    }

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        if "input" not in body:
            raise missing_parameter("input")
        return {"prompts": read_prompts(body["input"], "input")}
