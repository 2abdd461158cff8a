"""Knows the WebSocket /v1/responses, as openai's `client.responses.connect()` speaks it.

`response.create` in; the events of `gateway.responses` out. Each `stream_id` is a lane of its own: one response at a
time per lane, first come first served, lanes side by side, every event marked with its lane. Of the connection's last
responses the turns are remembered here, and only here, for `previous_response_id` and references to their items. The
key is verified again for every response.

A browser can set no headers: it sends the key as a subprotocol, beside one that may be answered, and says which page it
shows. That page has to be one that may call the data plane.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from pydantic_core import from_json, to_json

from gateway import trials
from gateway.authentication import authenticate
from gateway.errors import (
    ApiError,
    BadRequest,
    Busy,
    Forbidden,
    OriginRefused,
    TooLarge,
    Unauthorized,
    translated,
)
from gateway.exchange import Exchange
from gateway.places import Place
from gateway.prompts import Turn
from gateway.responses import Data, Shape, begin, turns, unknown_previous
from gateway.schemas.responses import ResponsesRequest
from gateway.stream import cut

ROUTE = "responses.websocket"
MAX_FRAME = 4 * 2**20  # characters
MAX_LANES = 16
MAX_QUEUED = 8  # requests that wait in a lane
MAX_HELD = 2 * MAX_FRAME  # characters of all requests that wait or are under way in a connection
REMEMBERED = 16  # responses

SUBPROTOCOL = "realtime"
KEY_SUBPROTOCOL = "openai-insecure-api-key."

POLICY_VIOLATION = 1008
TOO_BIG = 1009
GONE = (
    OSError,
    RuntimeError,
)  # what sending to a client that has left raises; `websocket_disconnect` is on its way then


class ResponsesConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    channel_layer_alias = "none"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lanes: dict[str | None, Lane] = {}
        self._said: OrderedDict[str, Said] = OrderedDict()
        self._held = 0  # characters
        self._place = Place()

    async def __call__(self, scope: Data, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        try:
            with self._place:
                await super().__call__(scope, receive, send)
        finally:
            for lane in self._lanes.values():
                lane.cancel()

    async def connect(self) -> None:
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.scope["headers"]}
        offered = self.scope["subprotocols"]
        if (key := _key_among(offered)) is not None:
            self._headers.setdefault("authorization", f"Bearer {key}")
        exchange = self._exchange()
        try:
            _check_origin(self._headers)
            self._place.take(await authenticate(self._headers))
        except Exception as error:
            await self._deny(exchange, translated(error))
        else:
            answered = SUBPROTOCOL if SUBPROTOCOL in offered else None
            await self.accept(subprotocol=answered, headers=[(b"x-request-id", exchange.id.encode())])

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Puts a request into its lane. What is wrong with it is told at once, and the connection goes on.

        It waits as text, and is parsed again at its turn: as objects it may take thirty times the room.
        """
        lane = None
        try:
            text = _text(text_data)
            lane = _lane(_event(text).get("stream_id"))
            self._enqueue(lane, text)
        except ApiError as error:
            await self.tell(protocol_error(error), lane)
            if isinstance(error, TooLarge):
                await self._hang_up(TOO_BIG)

    async def tell(self, event: Data, lane: str | None) -> None:
        marked = event if lane is None else {**event, "stream_id": lane}
        with suppress(*GONE):
            await self.send(text_data=to_json(marked, inf_nan_mode="null").decode())

    async def _hang_up(self, code: int) -> None:
        with suppress(*GONE):
            await self.close(code)

    async def respond(self, text: str, lane: str | None) -> None:
        """One response, from its first event to its last. A failure is an event too."""
        exchange = self._exchange()
        status, complete = 200, False
        try:
            with exchange.place:
                await self._respond(exchange, text, lane)
            complete = True
        except Exception as error:
            told = translated(error)
            status = told.status
            await self.tell(protocol_error(told), lane)
            if isinstance(error, Unauthorized | Forbidden):
                await self._hang_up(POLICY_VIOLATION)
            complete = True
        finally:
            self._held -= len(text)
            exchange.end(status, complete=complete)

    async def _respond(self, exchange: Exchange, text: str, lane: str | None) -> None:
        """Raises what goes wrong before the first event; tells what goes wrong after it."""
        caller = await authenticate(self._headers)
        exchange.key = str(caller.key)
        exchange.place.take(caller)
        asked = ResponsesRequest.of(_asked(text))
        previous = asked.previous_response_id
        if previous is not None and previous not in self._said:
            raise unknown_previous(previous)
        before = self._said[previous].turns if previous is not None else []
        known = {said.item: said.turns[-1] for said in self._said.values()}
        run, shape = await begin(exchange, caller, asked, before, known)
        async with run:
            try:
                async for told in shape.events(run):
                    await self.tell(told, lane)
            except Exception as error:
                failure = cut(run, error)
                await self.tell(protocol_error(failure, shape.number), lane)
            else:
                own = turns(asked.model_copy(update={"instructions": None}), before, known)
                self._remember(shape, own)

    def _remember(self, shape: Shape, before: list[Turn]) -> None:
        answer: Turn = {"role": "assistant", "content": shape.said.text}
        self._said[shape.id] = Said(shape.message_id, [*before, answer])
        while len(self._said) > REMEMBERED:
            self._said.popitem(last=False)

    def _enqueue(self, name: str | None, text: str) -> None:
        if self._held + len(text) > MAX_HELD:
            raise Busy(f"A connection may have requests of {MAX_HELD} characters waiting and under way at most.")
        if name not in self._lanes:
            self._close_idle_lanes()
            if len(self._lanes) >= MAX_LANES:
                raise Busy(f"A connection may have {MAX_LANES} streams under way at most.")
            self._lanes[name] = Lane(lambda request: self.respond(request, name))
        self._lanes[name].put(text)
        self._held += len(text)

    def _close_idle_lanes(self) -> None:
        for name in [name for name, lane in self._lanes.items() if lane.idle]:
            self._lanes.pop(name).cancel()

    async def _deny(self, exchange: Exchange, error: ApiError) -> None:
        """Answers the handshake with a status and the same body that HTTP gets."""
        exchange.end(error.status)
        if "websocket.http.response" not in self.scope.get("extensions", {}):
            await self.close()
            return
        response = error.response()
        response.headers["x-request-id"] = exchange.id
        response.headers["Content-Length"] = str(len(response.content))
        headers = [(name.lower().encode(), value.encode()) for name, value in response.items()]
        await self.base_send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
        await self.base_send({"type": "websocket.http.response.body", "body": response.content})

    def _exchange(self) -> Exchange:
        exchange = Exchange.of(self._headers.get("x-request-id"), ROUTE)
        exchange.arm = self._headers.get(trials.HEADER, "")
        return exchange


@dataclass(frozen=True, slots=True)
class Said:
    """A conversation up to an answer of this connection's, whose item has this id."""

    item: str
    turns: list[Turn]


class Lane:
    """Requests of one stream_id, answered one after the other by a task that lives while the connection does."""

    def __init__(self, respond: Callable[[str], Awaitable[None]]) -> None:
        self._queue: asyncio.Queue[str] = asyncio.Queue(MAX_QUEUED)
        self._busy = False
        self._task = asyncio.create_task(self._work(respond))

    @property
    def idle(self) -> bool:
        return not self._busy and self._queue.empty()

    def put(self, text: str) -> None:
        """Raises Busy when too many wait already."""
        try:
            self._queue.put_nowait(text)
        except asyncio.QueueFull:
            raise Busy(f"A stream may have {MAX_QUEUED} requests waiting at most.") from None

    def cancel(self) -> None:
        """Ends what is under way, in the engine too."""
        self._task.cancel()

    async def _work(self, respond: Callable[[str], Awaitable[None]]) -> None:
        while True:
            text = await self._queue.get()
            self._busy = True
            try:
                await respond(text)
            finally:
                self._busy = False
                del text  # an idle lane holds nothing


def protocol_error(error: ApiError, number: int = 0) -> Data:
    headers = {name.lower(): value for name, value in error.headers.items()}
    told = {**error.error, "headers": headers} if headers else error.error
    return {"type": "error", "status": error.status, "sequence_number": number, "error": told}


def _key_among(subprotocols: list[str]) -> str | None:
    """The key that a browser offers as one of them. Never to be answered with: answers are seen by others."""
    keys = (name.removeprefix(KEY_SUBPROTOCOL) for name in subprotocols if name.startswith(KEY_SUBPROTOCOL))
    return next(keys, None)


def _check_origin(headers: Mapping[str, str]) -> None:
    """Raises OriginRefused for a page of a browser's that may not call the data plane. Other clients name none."""
    origin, env = headers.get("origin", "").lower(), settings.LORAYARD
    if not origin or "*" in env.origins:
        return
    own = origin in (env.url, f"http://{headers.get('host', '').lower()}", f"https://{headers.get('host', '').lower()}")
    if not own and origin not in env.origins:
        raise OriginRefused


def _text(frame: str | None) -> str:
    """Raises BadRequest for what is no text, TooLarge."""
    if frame is None:
        raise BadRequest("Events are text frames that hold JSON.", code="invalid_json")
    if len(frame) > MAX_FRAME:
        raise TooLarge(f"An event may have {MAX_FRAME} characters at most.")
    return frame


def _event(text: str) -> Data:
    """The fields of a response.create. Raises BadRequest."""
    try:
        event = from_json(text, allow_inf_nan=False)
    except ValueError:
        raise BadRequest("The event is not valid JSON.", code="invalid_json") from None
    if not isinstance(event, dict):
        raise BadRequest("The event must be a JSON object.", code="invalid_json")
    if event.pop("type", None) != "response.create":
        raise BadRequest("The only event that is served is 'response.create'.", param="type")
    return event


def _asked(text: str) -> Data:
    """What a response.create asks for, as a streamed request over HTTP would."""
    event = _event(text)
    event.pop("stream_id", None)
    return {**event, "stream": True}


def _lane(name: object) -> str | None:
    if name is None or (isinstance(name, str) and 0 < len(name) <= 128):
        return name
    raise BadRequest("'stream_id' must be a string of 1 to 128 characters.", param="stream_id")
