"""The output of a response: items and their parts, and the events by which they come about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trunkline.engine.answers.identity import part_id
from trunkline.engine.answers.pieces import CallArguments, CallBegins, Content, Reasoning
from trunkline.engine.answers.reader import Part
from trunkline.engine.request import Line

Event = dict[str, Any]
JsonObject = dict[str, Any]


class OutputItems:
    """Items that grow by the parts of an answer: one after the other, the last one open.

    Each method returns the events of what it did, without their sequence numbers.

    Args:
        line: gives the items their names.
        logprobs_of: the log-probabilities of a part's tokens.
    """

    def __init__(self, line: Line, logprobs_of: Callable[[Part], list[JsonObject]]) -> None:
        self.items: list[JsonObject] = []
        self._line = line
        self._logprobs_of = logprobs_of
        self._is_open = False

    def add(self, part: Part) -> list[Event]:
        """Add a part to the open item, or close it and open the one that the part belongs to."""
        piece = part.piece
        if isinstance(piece, Content):
            return self._opened("message") + self._add_text(piece.text, self._logprobs_of(part))
        if isinstance(piece, Reasoning):
            return self._opened("reasoning") + self._add_reasoning(piece.text)
        if isinstance(piece, CallBegins):
            return self.close("completed") + self._open_call(piece)
        return self._add_arguments(piece)

    def close(self, status: str) -> list[Event]:
        """End the open item, if one is open."""
        if not self._is_open:
            return []
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        ends = []
        if item["type"] == "function_call":
            ends.append(
                self._event(
                    "response.function_call_arguments.done",
                    arguments=item["arguments"],
                    name=item["name"],
                )
            )
        else:
            part = item["content"][0]
            is_message = item["type"] == "message"
            done = "response.output_text.done" if is_message else "response.reasoning_text.done"
            logprobs = {"logprobs": part["logprobs"]} if is_message else {}
            ends.append(self._event(done, content_index=0, text=part["text"], **logprobs))
            ends.append(self._event("response.content_part.done", content_index=0, part=part))
        return [*ends, self._item_event("response.output_item.done", item)]

    def open_message(self) -> list[Event]:
        """Open a message, which may stay empty."""
        return self._opened("message")

    def _opened(self, kind: str) -> list[Event]:
        """Make sure that the open item is of a kind, `message` or `reasoning`."""
        if self._is_open and self.items[-1]["type"] == kind:
            return []
        events = self.close("completed")
        item: JsonObject
        part: JsonObject
        if kind == "message":
            item = {
                "id": self._name("msg"),
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {
                "id": self._name("rs"),
                "type": "reasoning",
                "status": "in_progress",
                "summary": [],
                "content": [],
            }
            part = {"type": "reasoning_text", "text": ""}
        events += self._open(item)
        item["content"] = [part]
        added = self._event("response.content_part.added", content_index=0, part=_copied(part))
        return [*events, added]

    def _open_call(self, piece: CallBegins) -> list[Event]:
        item = {
            "id": self._name("fc"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": part_id("call", self._line, 0, piece.index),
            "name": piece.name,
            "arguments": "",
        }
        return self._open(item)

    def _open(self, item: JsonObject) -> list[Event]:
        self.items.append(item)
        self._is_open = True
        return [self._item_event("response.output_item.added", _copied(item))]

    def _add_text(self, text: str, logprobs: list[JsonObject]) -> list[Event]:
        part = self.items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        return [
            self._event(
                "response.output_text.delta", content_index=0, delta=text, logprobs=logprobs
            )
        ]

    def _add_reasoning(self, text: str) -> list[Event]:
        self.items[-1]["content"][0]["text"] += text
        return [self._event("response.reasoning_text.delta", content_index=0, delta=text)]

    def _add_arguments(self, piece: CallArguments) -> list[Event]:
        self.items[-1]["arguments"] += piece.text
        return [self._event("response.function_call_arguments.delta", delta=piece.text)]

    def _name(self, prefix: str) -> str:
        return part_id(prefix, self._line, len(self.items))

    def _item_event(self, kind: str, item: JsonObject) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, "item": item}

    def _event(self, kind: str, **fields: Any) -> Event:
        item = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": kind, **item, **fields}


def _copied(item: JsonObject) -> JsonObject:
    """A copy that later additions to the item leave as it is."""
    return {name: list(v) if isinstance(v, list) else v for name, v in item.items()}
