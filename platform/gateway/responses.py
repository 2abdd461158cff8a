"""Knows the shape of POST /v1/responses, and of the events that its stream and the WebSocket share.

Nothing is stored: a response can be built upon (`previous_response_id`, `item_reference`) only within the WebSocket
that it was made in.
"""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.http.response import HttpResponseBase

from gateway import logprobs, prompts, trials
from gateway.authentication import Caller
from gateway.errors import ApiError, BadRequest
from gateway.exchange import Exchange
from gateway.generation import Run, Usage, Whole
from gateway.schemas.refusals import clean
from gateway.schemas.responses import InputItem, ItemReference, ReasoningItem, ResponsesRequest
from gateway.stream import EventStream, cut, labelled, sse
from gateway.views import GatewayRequest, endpoint, json_response
from inference.client import Delta, PositionLogprobs

Data = dict[str, Any]
Turns = list[prompts.Turn]
NOTHING: Mapping[str, prompts.Turn] = {}


@endpoint("POST")
async def responses(request: GatewayRequest, caller: Caller) -> HttpResponseBase:
    asked = request.parsed(ResponsesRequest.parse)
    if asked.previous_response_id is not None:
        raise unknown_previous(asked.previous_response_id)
    run, shape = await begin(request.exchange, caller, asked)
    if asked.stream:
        return labelled(EventStream(run, _server_sent(run, shape)), run)
    async with run:
        async for _ in shape.events(run):
            pass
    return labelled(json_response(shape.response), run)


async def begin(
    exchange: Exchange,
    caller: Caller,
    asked: ResponsesRequest,
    before: Sequence[prompts.Turn] = (),
    known: Mapping[str, prompts.Turn] = NOTHING,
) -> tuple[Run, "Shape"]:
    """The run, which whoever calls has to close, and the shape that its events get.

    before: earlier turns, in order. known: earlier answers by the ids of their items. Raises BadRequest.
    """
    said = turns(asked, before, known)
    route = await trials.route(exchange, caller, asked, said)
    prompt = await prompts.chat(route.target.base, said, param=asked.content, room=asked.limit, share=caller.share)
    shape = Shape(route.target.model, asked)
    run = await Run.start(exchange, caller, route, [prompt], asked)
    run.name(shape.id)
    return run, shape


def turns(
    asked: ResponsesRequest, before: Sequence[prompts.Turn] = (), known: Mapping[str, prompts.Turn] = NOTHING
) -> Turns:
    """What the model is told: the request's instructions, the turns before, the request's own turns.

    Raises BadRequest for an item that is referred to and not known.
    """
    instructions = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    own = [_turn(item, index, known) for index, item in enumerate(asked.items)]
    return [*instructions, *before, *filter(None, own)]


def unknown_previous(response: str) -> BadRequest:
    message = f"Previous response with id '{response}' not found."
    return BadRequest(message, param="previous_response_id", code="previous_response_not_found")


def _turn(
    item: InputItem | ItemReference | ReasoningItem, index: int, known: Mapping[str, prompts.Turn]
) -> prompts.Turn | None:
    match item:
        case InputItem():
            return {"role": "system" if item.role == "developer" else item.role, "content": item.text}
        case ItemReference() if item.id in known:
            return known[item.id]
        case ItemReference():
            raise _unknown_item(item.id, f"input[{index}].id")
    return None


def _unknown_item(item: str, param: str) -> BadRequest:
    message = (
        f"'{param}' refers to '{clean(item)}', which is not known here: nothing is stored. Set 'store' to false where"
        " the client chooses what to send (the AI SDK: providerOptions.openai.store), so that it sends whole items; or"
        " build upon a response of the same WebSocket by 'previous_response_id'."
    )
    return BadRequest(message, param=param, code="item_not_found")


async def _server_sent(run: Run, shape: "Shape") -> AsyncGenerator[bytes]:
    try:
        async for event in shape.events(run):
            yield sse(event, event["type"])
    except Exception as error:  # whatever it is, the client is told
        event = shape.error(cut(run, error))
        yield sse(event, event["type"])


@dataclass
class Shape:
    """One response as it comes into being: every event, in order and numbered, and the response as it stands."""

    model: str
    asked: ResponsesRequest
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    message_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    said: Whole = field(default_factory=Whole)
    usage: Usage | None = None
    _number: int = -1

    async def events(self, run: Run) -> AsyncIterator[Data]:
        """From response.created to response.completed, or to response.incomplete where a limit ended it."""
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)
        yield self._event("response.output_item.added", output_index=0, item=self._item(empty=True))
        yield self._part("response.content_part.added", part=self._text(empty=True))
        async for _, event in run.events():
            self.said.add(event)
            if isinstance(event, Delta) and (event.text or event.logprobs):
                told = self._logprobs(event.logprobs)
                yield self._part("response.output_text.delta", delta=event.text, logprobs=told)
        self.usage = run.usage
        told = self._logprobs(self.said.positions)
        yield self._part("response.output_text.done", text=self.said.text, logprobs=told)
        yield self._part("response.content_part.done", part=self._text())
        yield self._event("response.output_item.done", output_index=0, item=self._item())
        yield self._event(f"response.{self.status}", response=self.response)

    def error(self, error: ApiError) -> Data:
        return self._event("error", code=error.code, message=error.message, param=error.param)

    @property
    def number(self) -> int:
        """The next event's, and takes it."""
        self._number += 1
        return self._number

    @property
    def status(self) -> str:
        return {"": "in_progress", "stop": "completed"}.get(self.said.reason, "incomplete")

    @property
    def response(self) -> Data:
        finished = self.usage is not None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if self.status == "completed" else None,
            "status": self.status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "instructions": self.asked.instructions,
            "max_output_tokens": self.asked.max_output_tokens,
            "metadata": self.asked.metadata or {},
            "model": self.model,
            "output": [self._item()] if finished else [],
            "parallel_tool_calls": False,
            "previous_response_id": self.asked.previous_response_id,
            "store": False,
            "temperature": 1.0 if self.asked.temperature is None else self.asked.temperature,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": self.asked.top_logprobs or 0,
            "top_p": 1.0 if self.asked.top_p is None else self.asked.top_p,
            "truncation": "disabled",
            "usage": _usage(self.usage) if self.usage is not None else None,
        }

    def _event(self, kind: str, **more: Any) -> Data:
        return {"type": kind, "sequence_number": self.number, **more}

    def _part(self, kind: str, **more: Any) -> Data:
        return self._event(kind, item_id=self.message_id, output_index=0, content_index=0, **more)

    def _item(self, *, empty: bool = False) -> Data:
        content = [] if empty else [self._text()]
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "content": content,
        }

    def _text(self, *, empty: bool = False) -> Data:
        text, positions = ("", []) if empty else (self.said.text, self.said.positions)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(positions)}

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> list[Data]:
        count = self.asked.logprob_count
        return [] if count is None else logprobs.content(positions, count)


def _usage(used: Usage) -> Data:
    return {
        "input_tokens": used.prompt,
        "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": 0},
        "output_tokens": used.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.total,
    }
