"""Knows the shape of POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.http.response import HttpResponseBase

from gateway import logprobs, prompts, trials
from gateway.authentication import Caller
from gateway.generation import Run, Usage
from gateway.schemas.chat import ChatRequest, Message
from gateway.schemas.completions import CompletionRequest
from gateway.stream import DONE, answer, sse
from gateway.views import GatewayRequest, endpoint
from inference.client import Delta, PositionLogprobs


@endpoint("POST")
async def chat_completions(request: GatewayRequest, caller: Caller) -> HttpResponseBase:
    asked = request.parsed(ChatRequest.parse)
    turns = [turn(message) for message in asked.messages]
    route = await trials.route(request.exchange, caller, asked, turns)
    base = route.target.base
    share, answer_text = caller.share, asked.forced_answer
    forced = await prompts.answer(answer_text, base, param="forced_answer", share=share) if answer_text else ()
    prompt = await prompts.chat(base, turns, param=asked.content, room=len(forced) or asked.limit, share=share)
    run = await Run.start(request.exchange, caller, route, [prompt], asked, forced)
    return await answer(run, Shape(route.target.model, asked), stream=bool(asked.stream))


def turn(message: Message) -> prompts.Turn:
    """As chat templates know it: `developer` is OpenAI's newer word for `system`."""
    role = "system" if message.role == "developer" else message.role
    named = {"name": message.name} if message.name else {}
    return {"role": role, "content": message.text, **named}


def usage(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.prompt,
        "completion_tokens": used.completion,
        "total_tokens": used.total,
        "prompt_tokens_details": {"cached_tokens": used.cached},
    }


def so_far(run: Run, index: int, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """What a chunk of this choice tells of its usage until now, where the client wants that."""
    wanted = asked.stream_options is not None and asked.stream_options.continuous
    return {"usage": usage(run.so_far(index))} if wanted else {}


@dataclass(frozen=True)
class Shape:
    """One call's answer, in chunks or whole."""

    model: str
    asked: ChatRequest
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def usage_apart(self) -> bool:
        """Whether the client wants usage in a chunk of its own. It comes with the last choice's end otherwise."""
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    async def chunks(self, run: Run) -> AsyncIterator[bytes]:
        unfinished = self.asked.choices
        for index in range(self.asked.choices):
            yield self._chunk(index, {"role": "assistant", "content": ""}, **so_far(run, index, self.asked))
        async for index, event in run.events():
            if isinstance(event, Delta):
                if event.text or event.logprobs:
                    told = so_far(run, index, self.asked)
                    yield self._chunk(index, {"content": event.text}, event.logprobs, **told)
                continue
            unfinished -= 1
            last = so_far(run, index, self.asked)
            if not unfinished and not self.usage_apart:
                last = {"usage": usage(run.usage)}
            yield self._chunk(index, {}, reason=event.reason, **last)
        if self.usage_apart:
            yield sse({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(run.usage)})
        yield DONE

    async def whole(self, run: Run) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": whole.text, "refusal": None},
                "logprobs": self._logprobs(whole.positions),
                "finish_reason": whole.reason,
            }
            for index, whole in enumerate(await run.collect())
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(run.usage)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        positions: Sequence[PositionLogprobs] = (),
        reason: str | None = None,
        **more: Any,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(positions) if positions else None,
            "finish_reason": reason,
        }
        unsaid = {"usage": None} if self.usage_apart else {}
        return sse({**self._head("chat.completion.chunk"), "choices": [choice], **unsaid, **more})

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> dict[str, Any] | None:
        count = self.asked.logprob_count
        return None if count is None else {"content": logprobs.content(positions, count), "refusal": None}
