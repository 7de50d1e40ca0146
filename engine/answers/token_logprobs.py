"""Log-probabilities of tokens, as the API shows them."""

from __future__ import annotations

from typing import Any

from trunkline.engine.answers.text_stream import Detokenizer
from trunkline.engine.sequence import Sequence
from trunkline.engine.step_plan import TokenLogprobs

# What OpenAI's API says of tokens that are as good as impossible.
MIN_LOGPROB = -9999.0


def token_logprobs(
    sequence: Sequence, tokens: range, tokenizer: Detokenizer
) -> list[dict[str, Any]]:
    """Generated tokens of a chat completion or a response.

    Args:
        tokens: places in the sequence's output.
    """
    return [_shown(sequence.output[i], sequence.logprobs[i], tokenizer) for i in tokens]


def _shown(token: int, entry: TokenLogprobs, tokenizer: Detokenizer) -> dict[str, Any]:
    """One token.

    It need not be whole characters: bytes that are none are written as `\\xf0` in its text,
    and ``bytes`` has them all.
    """
    top = zip(entry.top_ids, entry.top_logprobs, strict=True)
    return {
        **_named(token, entry.sampled, tokenizer),
        "top_logprobs": [_named(id_, logprob, tokenizer) for id_, logprob in top],
    }


def _named(token: int, logprob: float, tokenizer: Detokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {
        "token": raw.decode(errors="backslashreplace"),
        "logprob": shown_logprob(logprob),
        "bytes": list(raw),
    }


def shown_logprob(logprob: float) -> float:
    """A log-probability as a number that JSON has."""
    return max(MIN_LOGPROB, logprob)  # the first of the two, where the second is not a number


def legacy_token(token: int, tokenizer: Detokenizer) -> str:
    """A token's text in a text completion: `bytes:\\xf0\\x9f` when it is not whole characters.

    Two tokens that are cut out of characters stay two keys of a dict.
    """
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"bytes:{raw.decode(errors='backslashreplace')}"
