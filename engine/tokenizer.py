"""Text to token ids and back, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import AutoTokenizer

Message = Mapping[str, Any]


class ChatTemplateError(ValueError):
    """The model has no chat template, or its template refuses the messages."""


class Tokenizer:
    """A model's tokenizer."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer in `folder`.

        Raises:
            OSError: there is none.
        """
        self._hf = AutoTokenizer.from_pretrained(str(folder))
        self._is_byte_level = "ByteLevel" in str(self._hf.backend_tokenizer.decoder)
        self._special_ids = frozenset(self._hf.all_special_ids)
        self._bytes_of: dict[int, bytes] = {}  # tokens that were asked for
        self.eos_token_ids = _eos_token_ids(folder, self._hf.eos_token_id)
        self.vocab_size: int = len(self._hf)

    @property
    def has_chat_template(self) -> bool:
        return self._hf.chat_template is not None

    def backend_json(self) -> str:
        """The whole tokenizer as the text of a `tokenizer.json`."""
        backend = copy(self._hf.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return str(backend.to_str())

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja template of conversations; of several, the one that shows tools."""
        return str(self._hf.get_chat_template(tools=[])) if self.has_chat_template else None

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The ids of all tokens by name."""
        return dict(self._hf.get_vocab())

    def render_chat(
        self,
        messages: Sequence[Message],
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt text of a conversation, up to where the assistant's answer goes on.

        Args:
            messages: the conversation, oldest first.
            template_kwargs: further variables for the template.
            tools: as chat completions have them.
            continue_final_message: the last message is the beginning of the answer.
            add_generation_prompt: a new answer begins behind the last message.

        Raises:
            ChatTemplateError: see the class.
        """
        if not self.has_chat_template:
            raise ChatTemplateError(
                "the model has no chat template; send its prompts to /v1/completions"
            )
        own_kwargs = {
            "tools": None if tools is None else list(tools),
            "tokenize": False,
            "continue_final_message": continue_final_message,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        try:
            text = self._hf.apply_chat_template(
                list(messages), **{**(template_kwargs or {}), **own_kwargs}
            )
        except (
            *(TemplateError, TypeError, KeyError, ValueError, AttributeError),
            *(IndexError, OverflowError, RecursionError),
        ) as error:
            raise ChatTemplateError(
                f"the model's chat template refuses the messages: {error}"
            ) from error
        return str(text)

    def encode_chat(self, text: str) -> NDArray[np.int32]:
        """Token ids of a rendered conversation, whose special tokens are in the text."""
        return np.array(self._hf.encode(text, add_special_tokens=False), dtype=np.int32)

    def encode_prompt(self, text: str) -> NDArray[np.int32]:
        """Token ids of a bare prompt, with the special tokens that the model puts before it."""
        return np.array(self._hf.encode(text, add_special_tokens=True), dtype=np.int32)

    def encode_many(
        self, texts: Sequence[str], *, add_special_tokens: bool
    ) -> list[NDArray[np.int32]]:
        """Like `encode_prompt` or `encode_chat` of each text, on all cores."""
        if not texts:
            return []
        encoded = self._hf(
            list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False
        )
        return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    def decode(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        """Text of the tokens; special tokens are left out unless kept.

        Incomplete UTF-8 becomes U+FFFD.
        """
        text = self._hf.decode(
            list(token_ids),
            skip_special_tokens=not keep_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return str(text)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; a special token's are its name."""
        known = self._bytes_of.get(token_id)
        if known is None:
            known = self._bytes_of[token_id] = self._find_bytes(token_id)
        return known

    def _find_bytes(self, token_id: int) -> bytes:
        token = self._hf.convert_ids_to_tokens(token_id)
        if token is None:  # the model's output layer is wider than the vocabulary
            return b""
        if token_id in self._special_ids:
            return str(token).encode()
        if self._is_byte_level:
            return b"".join(_BYTE_OF.get(char, char.encode()) for char in token)
        if len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return str(token).replace("\u2581", " ").encode()


def _eos_token_ids(folder: Path, tokenizer_eos: int | None) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of generation_config.json."""
    found = set() if tokenizer_eos is None else {tokenizer_eos}
    path = folder / "generation_config.json"
    if path.is_file():
        configured = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        if isinstance(configured, int):
            found.add(configured)
        elif configured is not None:
            found.update(configured)
    return frozenset(found)


def _byte_of_char() -> dict[str, bytes]:
    """The inverse of the map from bytes to printable characters of byte-level BPE (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    chars = {chr(byte): bytes([byte]) for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return chars | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


_BYTE_OF = _byte_of_char()
