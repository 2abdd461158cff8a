"""Knows the three ways in which OpenAI writes logprobs down."""

from collections.abc import Iterable, Sequence
from typing import Any

from inference.client import PositionLogprobs, TokenLogprob

LEAST = -9999.0  # JSON has no infinity; OpenAI writes this


def content(positions: Iterable[PositionLogprobs], count: int) -> list[dict[str, Any]]:
    """One entry per token, each with the `count` likeliest at its place."""
    return [
        {**_entry(position.chosen), "top_logprobs": [_entry(token) for token in best(position, count)]}
        for position in positions
    ]


def legacy(positions: Sequence[PositionLogprobs], count: int, offset: int) -> dict[str, Any]:
    """Of /v1/completions: four parallel lists. offset: characters of the answer before the first of them."""
    offsets = []
    for position in positions:
        offsets.append(offset)
        offset += len(position.chosen.text)
    return {
        "tokens": [position.chosen.text for position in positions],
        "token_logprobs": [_finite(position.chosen.logprob) for position in positions],
        "top_logprobs": [
            {token.text: _finite(token.logprob) for token in (*best(position, count), position.chosen)}
            for position in positions
        ],
        "text_offset": offsets,
    }


def best(position: PositionLogprobs, count: int) -> list[TokenLogprob]:
    """The `count` likeliest tokens of a place, the chosen one among them if it is one of them."""
    tokens = {token.token: token for token in (position.chosen, *position.top)}
    return sorted(tokens.values(), key=lambda token: -token.logprob)[:count]


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.raw)}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
