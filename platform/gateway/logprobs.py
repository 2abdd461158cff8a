"""Knows the three ways in which OpenAI writes logprobs down."""

from codecs import getincrementaldecoder
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


class Place:
    """How far an answer is, in characters. A token that ends half-way in one begins no other."""

    def __init__(self) -> None:
        self._characters = 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def pass_by(self, token: TokenLogprob) -> int:
        """Where the token begins."""
        begins = self._characters
        self._characters += len(self._decoder.decode(token.raw))
        return begins


def legacy(positions: Sequence[PositionLogprobs], count: int, place: Place) -> dict[str, Any]:
    """Of /v1/completions: four parallel lists. place: of the first of them, moved on to the end of the last."""
    return {
        "tokens": [position.chosen.text for position in positions],
        "token_logprobs": [_finite(position.chosen.logprob) for position in positions],
        "top_logprobs": [
            {token.text: _finite(token.logprob) for token in (*best(position, count), position.chosen)}
            for position in positions
        ],
        "text_offset": [place.pass_by(position.chosen) for position in positions],
    }


def best(position: PositionLogprobs, count: int) -> list[TokenLogprob]:
    """The `count` likeliest tokens of a place, the chosen one among them if it is one of them."""
    tokens = {token.token: token for token in (position.chosen, *position.top)}
    return sorted(tokens.values(), key=lambda token: -token.logprob)[:count]


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.raw)}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
