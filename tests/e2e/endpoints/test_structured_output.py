"""Answers that fit a pydantic model, by the official client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.e2e.endpoints.asking import ABOUT_PARIS, Facts, say
from tests.e2e.small_engine import MODEL

pytestmark = pytest.mark.e2e


def test_chat_parses_into_a_model(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL,
        "messages": say(ABOUT_PARIS),
        "response_format": Facts,
        "temperature": 0,
    }
    whole = client.chat.completions.parse(**wanted)
    with client.chat.completions.stream(**wanted, stream_options={"include_usage": True}) as stream:
        events = list(stream)
        streamed = stream.get_final_completion()
    assert isinstance(whole.choices[0].message.parsed, Facts)
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert "".join(deltas) == whole.choices[0].message.content
    assert len(deltas) > whole.usage.completion_tokens / 2  # it came as it was written


def test_responses_parse_into_a_model(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL,
        "input": ABOUT_PARIS,
        "text_format": Facts,
        "temperature": 0,
    }
    whole = client.responses.parse(**wanted)
    with client.responses.stream(**wanted) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert isinstance(whole.output_parsed, Facts)
    assert streamed.output_parsed == whole.output_parsed
    assert streamed.output_text == whole.output_text
    assert streamed.status == whole.status == "completed"
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
