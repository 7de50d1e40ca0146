"""Bare prompts: text or token ids, one or many."""

from __future__ import annotations

from trunkline.engine.requests.errors import RequestError, invalid_value

Prompts = list[str] | list[list[int]]

MAX_PROMPTS = 2048  # as OpenAI's API has it


def read_prompts(value: object, param: str) -> Prompts:
    """A list of prompts from any form that the API allows.

    Raises:
        RequestError: it is of no such form, a prompt is empty, or there are too many.
    """
    prompts = [value] if isinstance(value, str) or _is_token_ids(value) else value
    if not (
        isinstance(prompts, list)
        and prompts
        and all(prompts)
        and (all(isinstance(p, str) for p in prompts) or all(map(_is_token_ids, prompts)))
    ):
        raise RequestError(
            f"'{param}' must be a string, an array of strings, an array of token ids, or an array "
            "of arrays of token ids, none of them empty.",
            param,
            "invalid_value",
        )
    if len(prompts) > MAX_PROMPTS:
        raise invalid_value(param, f"expected at most {MAX_PROMPTS} of them, got {len(prompts)}")
    return prompts


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
