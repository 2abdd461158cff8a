"""Knows how HTTP reaches the gateway's views: no middleware, no thread; knows no endpoint.

Django's own handler enters a ThreadSensitiveContext and calls signals and closers in threads, which would cost one per
open stream. Here nothing stands between the socket and the view, and every failure leaves in OpenAI's shape.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLResolver
from django.urls.resolvers import RegexPattern

from gateway import metrics, trials
from gateway.authentication import Caller, authenticate
from gateway.encodings import decoded
from gateway.errors import BadRequest, BodyTimeout, TooLarge, translated
from gateway.exchange import Exchange
from gateway.pace import Pace
from gateway.stream import EventStream
from gateway.views import GatewayRequest

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Scope = dict[str, Any]

MAX_BODY = 8 * 2**20  # bytes, decoded or not
SMALL = 64 * 2**10  # bytes that are held for whoever has shown no key yet
LARGE = 2**20  # bytes beyond which a body takes a place of its own
BODY_TIMEOUT = 60  # seconds
GONE = 499  # the status, in metrics and logs, of a call whose client left before it was answered

resolver = URLResolver(RegexPattern(r"^/v1/"), "gateway.urls")


class GatewayHandler(ASGIHandler):
    def load_middleware(self, is_async: bool = False) -> None:
        """There is none."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await self.handle(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, and drops its work as soon as the client is gone."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        exchange = Exchange.of(headers.get("x-request-id"))
        exchange.arm = headers.get(trials.HEADER, "")
        with exchange.place:
            try:
                body = await self.read(receive, Door(exchange, headers))
            except RequestAborted:
                return
            except Exception as error:
                await self._answer(exchange, _ready(translated(error).response()), send)
            else:
                await _while_connected(self._answer(exchange, _respond(exchange, scope, body), send), receive)

    async def read(self, receive: Receive, door: "Door") -> io.BytesIO:
        """The body, decoded. Raises ApiError, and RequestAborted when the client goes away."""
        body, pace, more = io.BytesIO(), Pace(BODY_TIMEOUT), True
        length = door.headers.get("content-length", "")
        announced = int(length) if length.isdigit() else 0
        while more:
            await door.admit(max(announced, body.tell()))
            more = await _read(receive, body, pace)
        if encoding := door.headers.get("content-encoding"):
            body = io.BytesIO(await _decoded(body.getvalue(), encoding, door))
        body.seek(0)
        return body

    async def _answer(self, exchange: Exchange, answer: Awaitable[HttpResponseBase], send: Send) -> None:
        status, complete = GONE, False
        try:
            response = await answer
            status = response.status_code
            await self._send(exchange, response, send)
            complete = True
        finally:
            exchange.end(status, complete=complete)

    async def _send(self, exchange: Exchange, response: HttpResponseBase, send: Send) -> None:
        response.headers["x-request-id"] = exchange.id
        response.headers["openai-processing-ms"] = str(exchange.milliseconds)
        if isinstance(response, HttpResponse):
            response.headers["Content-Length"] = str(len(response.content))
        try:
            with metrics.OPEN.labels(exchange.route).track_inprogress():
                await self.send_response(response, send)
        finally:
            if isinstance(response, EventStream):
                await response.aclose()


@dataclass(slots=True)
class Door:
    """What one body has to show and to take before more of it is held."""

    exchange: Exchange
    headers: Mapping[str, str]
    _caller: Caller | None = None

    async def admit(self, size: int) -> None:
        """Much needs a key with a place left, very much a place among the key's large bodies. Raises ApiError."""
        if size <= SMALL:
            return
        if self._caller is None:
            self._caller = await authenticate(self.headers)
            self.exchange.key = str(self._caller.key)
            self.exchange.place.take(self._caller)
        if size > LARGE:
            self.exchange.place.take_large(self._caller)


async def _decoded(body: bytes, encoding: str, door: Door) -> bytes:
    """No more of it is made than may be held."""
    for limit in (SMALL, LARGE):
        with suppress(TooLarge):
            return await asyncio.to_thread(decoded, body, encoding, limit)
        await door.admit(limit + 1)
    return await asyncio.to_thread(decoded, body, encoding, MAX_BODY)


async def _respond(exchange: Exchange, scope: Scope, body: io.BytesIO) -> HttpResponseBase:
    """The view's answer. Whatever goes wrong becomes an answer too."""
    try:
        request = GatewayRequest(scope, body)
        match = resolver.resolve(request.path_info)
        exchange.route = match.view_name
        request.exchange = exchange
        response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
        return response
    except UnicodeDecodeError:
        return BadRequest("The address is not valid.", code="unknown_url").response()
    except Exception as error:
        return translated(error).response()


async def _ready(response: HttpResponseBase) -> HttpResponseBase:
    return response


async def _while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Does the work, and cancels it when the client is gone first."""
    answer = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.wait((answer, gone))
    with suppress(asyncio.CancelledError):
        answer.result()


async def _read(receive: Receive, body: io.BytesIO, pace: Pace) -> bool:
    """Adds the next piece; whether there is more. Raises TooLarge, BodyTimeout, RequestAborted."""
    try:
        message = await pace.next(receive)
    except TimeoutError:
        raise BodyTimeout("The body took too long to arrive.") from None
    if message["type"] == "http.disconnect":
        raise RequestAborted
    body.write(message.get("body", b""))
    if body.tell() > MAX_BODY:
        raise TooLarge(f"The body may have {MAX_BODY} bytes at most.")
    return bool(message.get("more_body", False))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


application = GatewayHandler()
