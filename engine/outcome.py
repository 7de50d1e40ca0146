"""From finished sequences to the response body of the API."""

from __future__ import annotations

import json
from typing import Any

from trunkline.engine.admission import Refusal, Request
from trunkline.engine.detokenize import final_text
from trunkline.engine.request_body import ChatCompletionRequest
from trunkline.engine.sequence import Sequence
from trunkline.engine.tokenizer import Tokenizer
from trunkline.store.records import Outcome


def refused(refusal: Refusal) -> Outcome:
    """The outcome of a line that could not be run."""
    return Outcome(
        line=refusal.line.line,
        status_code=refusal.error.status_code,
        body=_json(refusal.error.as_body()),
    )


def answered(request: Request, tokenizer: Tokenizer, created: int) -> Outcome:
    """The outcome of a request whose sequences have all finished.

    Args:
        created: unix seconds.
    """
    num_output_tokens = sum(len(sequence.output) for sequence in request.sequences)
    num_cached_tokens = _num_cached_tokens(request)
    usage = {
        "prompt_tokens": request.num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": request.num_prompt_tokens + num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    is_chat = isinstance(request.body, ChatCompletionRequest)
    choice = _chat_choice if is_chat else _text_choice
    identity = f"{request.line.batch_id}-{request.line.line}"
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{identity}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": request.body.model,
        "choices": [choice(sequence, tokenizer) for sequence in request.sequences],
        "usage": usage,
        "system_fingerprint": None,
    }
    return Outcome(
        line=request.line.line,
        status_code=200,
        body=_json(body),
        num_prompt_tokens=request.num_prompt_tokens,
        num_cached_tokens=num_cached_tokens,
        num_output_tokens=num_output_tokens,
    )


def _num_cached_tokens(request: Request) -> int:
    """Prompt tokens that another request had paid for.

    The n choices of a prompt share it among themselves, and it is billed once: what counts is the
    choice that found the least.
    """
    per_prompt: dict[int, int] = {}
    choices = request.body.n or 1
    for sequence in request.sequences:
        prompt = sequence.choice // choices
        cached = sequence.num_cached_tokens or 0
        per_prompt[prompt] = min(cached, per_prompt.get(prompt, cached))
    return sum(per_prompt.values())


def _finish_reason(sequence: Sequence) -> str:
    assert sequence.finish_reason is not None, "only finished sequences have an outcome"
    return sequence.finish_reason.value


def _chat_choice(sequence: Sequence, tokenizer: Tokenizer) -> dict[str, Any]:
    logprobs = None
    if sequence.sampling.num_top_logprobs is not None:
        content = []
        for token, entry in zip(sequence.output, sequence.logprobs, strict=True):
            top = zip(entry.top_ids, entry.top_logprobs, strict=True)
            content.append(
                {
                    **_token_logprob(token, entry.sampled, tokenizer),
                    "top_logprobs": [_token_logprob(t, lp, tokenizer) for t, lp in top],
                }
            )
        logprobs = {"content": content, "refusal": None}
    return {
        "index": sequence.choice,
        "message": {
            "role": "assistant",
            "content": final_text(tokenizer, sequence),
            "refusal": None,
        },
        "logprobs": logprobs,
        "finish_reason": _finish_reason(sequence),
    }


def _token_logprob(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {
        "token": raw.decode(errors="replace"),
        "logprob": logprob,
        "bytes": list(raw),
    }


def _text_choice(sequence: Sequence, tokenizer: Tokenizer) -> dict[str, Any]:
    logprobs = None
    if sequence.sampling.num_top_logprobs is not None:
        tokens = [tokenizer.token_bytes(t).decode(errors="replace") for t in sequence.output]
        offsets, at = [], 0
        for token in tokens:
            offsets.append(at)
            at += len(token)
        logprobs = {
            "tokens": tokens,
            "token_logprobs": [entry.sampled for entry in sequence.logprobs],
            "top_logprobs": [
                {
                    tokenizer.token_bytes(t).decode(errors="replace"): lp
                    for t, lp in zip(entry.top_ids, entry.top_logprobs, strict=True)
                }
                for entry in sequence.logprobs
            ],
            "text_offset": offsets,
        }
    return {
        "index": sequence.choice,
        "text": final_text(tokenizer, sequence),
        "logprobs": logprobs,
        "finish_reason": _finish_reason(sequence),
    }


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
