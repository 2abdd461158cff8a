"""Knows how a model is asked: over HTTP at the platform's own /v1, as any application would; nothing of scores.

So everything that holds for live traffic (naming, admission, limits, metering) holds here, and the engine sees one more
patient client of the tenant's.
"""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any

import httpx
from django.conf import settings

from evaluations.models import Item, Scorer

TIMEOUT = httpx.Timeout(600.0, connect=10.0)
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 15.0  # seconds


class Refused(Exception):
    """The platform will never answer this item; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said, or, for log-likelihood, how likely each token of the expected answer was."""

    text: str
    tokens: int
    logprobs: tuple[float, ...] = ()


def client(key: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=settings.LORAYARD.gateway_url, headers=headers, timeout=TIMEOUT, trust_env=False)


async def ask(http: httpx.AsyncClient, model: str, item: Item) -> Answer:
    """Asks until there is an answer: busy and broken servers are asked again, after a pause. Raises Refused."""
    attempt = 0
    while True:
        pause = min(LONGEST_PAUSE, 0.5 * 2**attempt)
        try:
            reply = await http.post("/v1/chat/completions", json=_body(model, item))
            if reply.status_code == 200:
                return _answer(item, reply.json())
            if reply.status_code not in AGAIN:
                raise Refused(_reason(reply))
            pause = max(pause, _retry_after(reply))
        except (httpx.TransportError, json.JSONDecodeError, LookupError):
            pass
        attempt = min(attempt + 1, 10)
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - a pause, no secret


def _body(model: str, item: Item) -> dict[str, Any]:
    asked = {"model": model, "messages": item.messages, "temperature": 0}
    if item.scorer == Scorer.LOG_LIKELIHOOD:
        return {**asked, "logprobs": True, "forced_answer": item.expected}
    return {**asked, "max_tokens": item.max_tokens}


def _answer(item: Item, reply: dict[str, Any]) -> Answer:
    choice, tokens = reply["choices"][0], int(reply["usage"]["completion_tokens"])
    if item.scorer == Scorer.LOG_LIKELIHOOD:
        return Answer("", tokens, tuple(float(entry["logprob"]) for entry in choice["logprobs"]["content"]))
    return Answer(choice["message"]["content"] or "", tokens)


def _reason(reply: httpx.Response) -> str:
    try:
        error = reply.json()["error"]
        return f"{error['code'] or reply.status_code}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the platform answered {reply.status_code}"


def _retry_after(reply: httpx.Response) -> float:
    told = reply.headers.get("Retry-After", "")
    return min(LONGEST_PAUSE, float(told)) if told.isdigit() else 0.0
