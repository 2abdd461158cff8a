"""Knows the shape of POST /v1/completions."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.http.response import HttpResponseBase

from gateway import logprobs, prompts, trials
from gateway.authentication import Caller
from gateway.chat import so_far, usage
from gateway.generation import Run
from gateway.schemas.completions import CompletionRequest
from gateway.stream import DONE, answer, sse
from gateway.views import GatewayRequest, endpoint
from inference.client import Delta, PositionLogprobs
from registry.models import BaseModel


@endpoint("POST")
async def completions(request: GatewayRequest, caller: Caller) -> HttpResponseBase:
    asked = request.parsed(CompletionRequest.parse)
    route = await trials.route(request.exchange, caller, asked)
    tokens = [await _tokens(route.target.base, prompt, asked, caller.share) for prompt in asked.prompts]
    run = await Run.start(request.exchange, caller, route, tokens, asked)
    return await answer(run, Shape(route.target.model, asked), stream=bool(asked.stream))


async def _tokens(base: BaseModel, prompt: str | list[int], asked: CompletionRequest, share: str) -> list[int]:
    if isinstance(prompt, str):
        return await prompts.text(base, prompt, param=asked.content, room=asked.limit, share=share)
    prompts.check(base, prompt, param=asked.content, room=asked.limit)
    return prompt


@dataclass(frozen=True)
class Shape:
    """One call's answer, in chunks or whole. Choices are numbered prompt by prompt."""

    model: str
    asked: CompletionRequest
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def choices(self) -> int:
        return len(self.asked.prompts) * self.asked.choices

    @property
    def usage_apart(self) -> bool:
        """Whether the client wants usage in a chunk of its own. It comes with the last choice's end otherwise."""
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    async def chunks(self, run: Run) -> AsyncIterator[bytes]:
        unfinished, places = self.choices, [logprobs.Place() for _ in range(self.choices)]
        async for index, event in run.events():
            if isinstance(event, Delta):
                if event.text or event.logprobs:
                    choice = self._choice(index, event.text, event.logprobs, places[index])
                    yield self._chunk(choice, **so_far(run, index, self.asked))
                continue
            unfinished -= 1
            last = so_far(run, index, self.asked)
            if not unfinished and not self.usage_apart:
                last = {"usage": usage(run.usage)}
            yield self._chunk(self._choice(index, "", reason=event.reason), **last)
        if self.usage_apart:
            yield sse({**self._head, "choices": [], "usage": usage(run.usage)})
        yield DONE

    async def whole(self, run: Run) -> dict[str, Any]:
        choices = [
            self._choice(index, whole.text, whole.positions, reason=whole.reason)
            for index, whole in enumerate(await run.collect())
        ]
        return {**self._head, "choices": choices, "usage": usage(run.usage)}

    @property
    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def _chunk(self, choice: dict[str, Any], **more: Any) -> bytes:
        unsaid = {"usage": None} if self.usage_apart else {}
        return sse({**self._head, "choices": [choice], **unsaid, **more})

    def _choice(
        self,
        index: int,
        text: str,
        positions: Sequence[PositionLogprobs] = (),
        place: logprobs.Place | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        wanted = positions and self.asked.logprobs is not None
        told = logprobs.legacy(positions, self.asked.logprobs or 0, place or logprobs.Place()) if wanted else None
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}
