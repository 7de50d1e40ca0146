"""Text completions: choices with text, its tokens' log-probabilities and the prompt's."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trunkline.engine.answers.identity import answer_id
from trunkline.engine.answers.text_stream import Detokenizer, TextStream
from trunkline.engine.answers.token_logprobs import legacy_token, shown_logprob
from trunkline.engine.answers.usage import Usage, usage_of
from trunkline.engine.request import Request
from trunkline.engine.requests.completion import CompletionRequest
from trunkline.engine.sequence import FinishReason
from trunkline.engine.sequence import Sequence as TokenSequence
from trunkline.engine.step_plan import TokenLogprobs

# Tokens of the prompt that its continuation is decoded with.
_NUM_CONTEXT_TOKENS = 8


def text_completion(
    request: Request, body: CompletionRequest, tokenizer: Detokenizer, created: int
) -> tuple[dict[str, Any], Usage]:
    """The `text_completion` object of a finished request.

    Args:
        created: unix seconds.
    """
    choices = []
    for index, sequence in enumerate(chosen(request.sequences, body)):
        choice = TextChoice(index, body, sequence, tokenizer)
        text, logprobs = choice.read(is_end=True)
        choices.append(choice.shown(text, logprobs, is_first=True, is_last=True))
    usage = completion_usage(request, body)
    completion = {
        "id": answer_id("cmpl", request.line),
        "object": "text_completion",
        "created": created,
        "model": body.model,
        "choices": choices,
        "usage": usage.of_completion(),
        "system_fingerprint": None,
    }
    return completion, usage


def completion_usage(request: Request, body: CompletionRequest) -> Usage:
    return usage_of(request.sequences, len(body.prompt))


def chosen(sequences: Sequence[TokenSequence], body: CompletionRequest) -> list[TokenSequence]:
    """The sequences that become choices: of each prompt's, the n that are most likely per token.

    All of them, in their order, unless more than n were generated.
    """
    num_choices = body.n or 1
    per_prompt = len(sequences) // len(body.prompt)
    if per_prompt == num_choices:
        return list(sequences)
    found: list[TokenSequence] = []
    for start in range(0, len(sequences), per_prompt):
        candidates = sequences[start : start + per_prompt]
        found += sorted(candidates, key=_mean_logprob, reverse=True)[:num_choices]
    return found


def _mean_logprob(sequence: TokenSequence) -> float:
    return sum(entry.sampled for entry in sequence.logprobs) / max(len(sequence.logprobs), 1)


class TextChoice:
    """One choice of a text completion, which is read as it grows.

    Args:
        index: of the choice within the answer, n for each prompt.
    """

    def __init__(
        self,
        index: int,
        body: CompletionRequest,
        sequence: TokenSequence,
        tokenizer: Detokenizer,
    ) -> None:
        self.index = index
        self._body = body
        self._sequence = sequence
        self._tokenizer = tokenizer
        self._num_top = body.num_top_logprobs
        self._num_read = 0  # tokens of the output
        context = sequence.prompt[-_NUM_CONTEXT_TOKENS:].tolist()
        self._text = TextStream(tokenizer, sequence.sampling, context=context)
        # The text without regard to its end, by which tokens have their places.
        without_end = replace(sequence.sampling, stop_token_ids=frozenset(), stop_strings=())
        self._whole_text = TextStream(tokenizer, without_end, context=context)
        prompt = body.prompt[index // (body.n or 1)]
        prompt_text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        self._echoed = prompt_text if body.echo else ""
        self._num_chars = len(self._echoed)

    def read(self, *, is_end: bool) -> tuple[str, _LegacyLogprobs | None]:
        """The text that was generated since the last call, and its tokens' log-probabilities."""
        start = self._num_read
        tokens = self._sequence.output[start:]
        self._num_read += len(tokens)
        text = self._text.push(tokens)
        if is_end:
            text += self._text.finish()
        if self._num_top is None:
            return text, None
        logprobs = _LegacyLogprobs(self._num_top, self._tokenizer)
        entries = self._sequence.logprobs[start : self._num_read]
        for token, entry in zip(tokens, entries, strict=True):
            logprobs.add(token, entry, self._num_chars)
            self._num_chars += len(self._whole_text.push([token]))
        return text, logprobs

    def shown(
        self, text: str, logprobs: _LegacyLogprobs | None, *, is_first: bool, is_last: bool
    ) -> dict[str, Any]:
        """The choice, or one chunk of it.

        Args:
            is_first: what is said of the prompt is a part of it.
            is_last: it says why the choice ended.
        """
        finish_reason = None
        if is_last:
            finish_reason = self._finish_reason
        choice: dict[str, Any] = {"index": self.index}
        if is_first and self._body.echo:
            text = self._echoed + text
            if logprobs is not None:
                logprobs = self._prompt_logprobs(logprobs)
        choice["text"] = text
        choice["logprobs"] = None if logprobs is None else logprobs.shown()
        choice["finish_reason"] = finish_reason
        if is_first and self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._ranked_prompt_logprobs(self._body.prompt_logprobs)
        return choice

    @property
    def _finish_reason(self) -> str:
        if self._body.output_limit == 0:  # the prompt was read, however that came to its end
            return FinishReason.LENGTH.value
        reason = self._sequence.finish_reason
        assert reason is not None, "only finished sequences have an outcome"
        return reason.value

    def _read_prompt(self) -> list[tuple[int, TokenLogprobs | None]]:
        """The prompt's tokens and what was read of them, nothing of the first."""
        record = self._sequence.record
        assert record is not None, "a prompt whose log-probabilities are wanted has been read"
        columns = (record.logprobs, record.top_ids, record.top_logprobs)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        entries = [TokenLogprobs(logprob, tuple(ids), tuple(top)) for logprob, ids, top in rows]
        return list(zip(self._sequence.prompt.tolist(), [None, *entries[1:]], strict=True))

    def _prompt_logprobs(self, following: _LegacyLogprobs) -> _LegacyLogprobs:
        assert self._num_top is not None
        logprobs = _LegacyLogprobs(self._num_top, self._tokenizer)
        offsets = _offsets(self._sequence.prompt.tolist(), self._echoed, self._tokenizer)
        for (token, entry), offset in zip(self._read_prompt(), offsets, strict=True):
            logprobs.add(token, entry, offset)
        return logprobs.followed_by(following)

    def _ranked_prompt_logprobs(self, num_top: int) -> list[dict[str, Any] | None]:
        """vLLM's form: the token itself and the most likely ones, by token id.

        The rank of a token that is not among the most likely ones is not known.
        """
        return [
            None if entry is None else _ranked(token, entry, num_top, self._tokenizer)
            for token, entry in self._read_prompt()
        ]


class _LegacyLogprobs:
    """The `logprobs` of a text completion's choice: four lists, an item in each for each token."""

    def __init__(self, num_top: int, tokenizer: Detokenizer) -> None:
        self._num_top = num_top
        self._tokenizer = tokenizer
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int, entry: TokenLogprobs | None, offset: int) -> None:
        """Add a token; None for its log-probabilities at the start of a prompt."""
        text = legacy_token(token, self._tokenizer)
        self._tokens.append(text)
        self._offsets.append(offset)
        if entry is None:
            self._logprobs.append(None)
            self._top.append(None)
            return
        ranked = zip(entry.top_ids[: self._num_top], entry.top_logprobs, strict=False)
        top = {legacy_token(id_, self._tokenizer): shown_logprob(lp) for id_, lp in ranked}
        self._logprobs.append(shown_logprob(entry.sampled))
        self._top.append({**top, text: shown_logprob(entry.sampled)})

    def followed_by(self, other: _LegacyLogprobs) -> _LegacyLogprobs:
        both = _LegacyLogprobs(self._num_top, self._tokenizer)
        both._tokens = self._tokens + other._tokens
        both._logprobs = self._logprobs + other._logprobs
        both._top = self._top + other._top
        both._offsets = self._offsets + other._offsets
        return both

    def shown(self) -> dict[str, Any]:
        return {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            "text_offset": self._offsets,
        }


def _ranked(
    token: int, entry: TokenLogprobs, num_top: int, tokenizer: Detokenizer
) -> dict[str, Any]:
    top = list(zip(entry.top_ids, entry.top_logprobs, strict=True))[:num_top]
    ranks = {id_: (logprob, rank) for rank, (id_, logprob) in enumerate(top, start=1)}
    found = {token: ranks.get(token, (entry.sampled, None)), **ranks}
    return {
        str(id_): {
            "logprob": shown_logprob(logprob),
            "rank": rank,
            "decoded_token": tokenizer.token_bytes(id_).decode(errors="replace"),
        }
        for id_, (logprob, rank) in found.items()
    }


def _offsets(tokens: list[int], text: str, tokenizer: Detokenizer) -> list[int]:
    """Where in `text` the text of each token begins, in characters.

    A token without a place in the text, as one that was put before it, stands where the next one
    begins. A token that begins inside a character stands where the character begins.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = []
    at = 0
    for token in tokens:
        offsets.append(at)
        written = decoder.decode(tokenizer.token_bytes(token))
        bare = written.removeprefix(" ") if at == 0 else written
        if text.startswith(written, at):
            at += len(written)
        elif bare and text.startswith(bare, at):
            at += len(bare)
        elif tokenizer.decode([token]):  # not a special token: the text was normalised
            at = min(at + len(written), len(text))
    return offsets
