"""Knows how HTTP reaches the gateway's views: no middleware, no thread; knows no endpoint.

Django's own handler enters a ThreadSensitiveContext and calls signals and closers in threads, which would cost one per
open stream. Here nothing stands between the socket and the view, and every failure leaves in OpenAI's shape.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import structlog
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler
from django.http.response import HttpResponseBase
from django.urls import URLResolver
from django.urls.resolvers import RegexPattern

from gateway import metrics
from gateway.errors import BadRequest, BodyTimeout, TooLarge, translated
from gateway.exchange import Exchange
from gateway.stream import EventStream
from gateway.views import GatewayRequest

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Scope = dict[str, Any]

MAX_BODY = 8 * 2**20  # bytes
BODY_TIMEOUT = 60  # seconds

log = structlog.get_logger(__name__)
resolver = URLResolver(RegexPattern(r"^/v1/"), "gateway.urls")


class GatewayHandler(ASGIHandler):
    def load_middleware(self, is_async: bool = False) -> None:
        """There is none."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await self.handle(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, and drops its work as soon as the client is gone."""
        exchange = Exchange.of(_header(scope, b"x-request-id"))
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                body = await self.read_body(receive)
        except RequestAborted:
            return
        except TimeoutError:
            await self._send(exchange, BodyTimeout("The body took too long to arrive.").response(), send)
        except TooLarge as error:
            await self._send(exchange, error.response(), send)
        else:
            await self._while_connected(exchange, self._answer(exchange, scope, body, send), receive)

    async def read_body(self, receive: Receive) -> io.BytesIO:
        """Raises TooLarge beyond MAX_BODY bytes, RequestAborted when the client goes away."""
        body = io.BytesIO()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestAborted
            if body.write(message.get("body", b"")) and body.tell() > MAX_BODY:
                raise TooLarge(f"The body may have {MAX_BODY} bytes at most.")
            if not message.get("more_body", False):
                body.seek(0)
                return body

    async def _while_connected(self, exchange: Exchange, work: Awaitable[None], receive: Receive) -> None:
        answer = asyncio.ensure_future(work)
        gone = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not answer.done():
                metrics.DISCONNECTS.labels(exchange.route).inc()
            answer.cancel()
            gone.cancel()
            await asyncio.wait((answer, gone))
        with suppress(asyncio.CancelledError):
            answer.result()

    async def _answer(self, exchange: Exchange, scope: Scope, body: io.BytesIO, send: Send) -> None:
        response = await self._respond(exchange, scope, body)
        try:
            await self._send(exchange, response, send)
        finally:
            if isinstance(response, EventStream):
                await response.aclose()

    async def _respond(self, exchange: Exchange, scope: Scope, body: io.BytesIO) -> HttpResponseBase:
        """The view's answer. Whatever it raises becomes an answer too."""
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

    async def _send(self, exchange: Exchange, response: HttpResponseBase, send: Send) -> None:
        if not response.streaming:
            response.headers["Content-Length"] = str(len(response.content))  # type: ignore[attr-defined]
        response.headers["x-request-id"] = exchange.id
        response.headers["openai-processing-ms"] = str(exchange.milliseconds)
        metrics.REQUESTS.labels(exchange.route, str(response.status_code)).inc()
        with metrics.OPEN.labels(exchange.route).track_inprogress():
            await self.send_response(response, send)
        metrics.DURATION.labels(exchange.route).observe(exchange.milliseconds / 1000)
        log.info(
            "answered",
            request_id=exchange.id,
            route=exchange.route,
            status=response.status_code,
            milliseconds=exchange.milliseconds,
            key=exchange.key,
        )


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


application = GatewayHandler()
