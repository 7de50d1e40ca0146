"""What the tests of the endpoints ask, and how they read the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import httpx
import openai
from pydantic import BaseModel, ConfigDict, Field

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
EMBEDDINGS, SCORE, RERANK = "/v1/embeddings", "/v1/score", "/v1/rerank"

City = Literal["Paris", "Tokyo", "Lima"]


class Facts(BaseModel):
    """Facts about a city."""

    # A model that talks nonsense would add properties without end.
    model_config = ConfigDict(extra="forbid")

    continent: Literal["Africa", "America", "Asia", "Europe"]
    motto: str = Field(max_length=8)
    age: int = Field(ge=0, le=5000)


class Weather(BaseModel):
    """The weather in a city."""

    city: City
    unit: Literal["celsius", "fahrenheit"]


class Clock(BaseModel):
    """The time in a city."""

    city: City


ABOUT_PARIS = "Tell me about Paris."
TWO_QUESTIONS = "What is the weather in Paris, and what time is it in Tokyo?"
TOOLS = [openai.pydantic_function_tool(model) for model in (Weather, Clock)]
RESPONSES_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]
FACTS_SCHEMA = {"name": "Facts", "schema": Facts.model_json_schema()}
TEXTS = ["The cat sat on the mat.", "A dog barked.", "Interest rates went up again."]


def say(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


def ask(site: Any, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a live request."""
    reply = httpx.post(f"http://127.0.0.1:{site.port}{endpoint}", json=body, timeout=240)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer
