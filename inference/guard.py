"""Knows who may call the engine and how its errors leave it; never what a call does."""

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from inference import wire
from inference.errors import METADATA_KEY, EngineError, Internal, to_status

log = logging.getLogger(__name__)


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Every call carries the shared secret; every EngineError becomes a status with details, anything else Internal."""

    def __init__(self, secret: str) -> None:
        self._expected = wire.authorization(secret)[1].encode()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        shown = dict(details.invocation_metadata).get("authorization", "")
        if not hmac.compare_digest(str(shown).encode(), self._expected):
            return _refusing(handler)
        return _translating(handler)


def _refusing(handler: Any) -> Any:
    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The shared secret is missing or wrong.")

    return _like(handler, refuse)


def _translating(handler: Any) -> Any:
    """The same handler, whose exceptions end the call with our status and metadata."""

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for message in handler.stream_stream(request, context):
                yield message
        except Exception as error:
            await _abort(context, error)

    async def call(request: Any, context: Any) -> Any:
        try:
            return await handler.unary_unary(request, context)
        except Exception as error:
            await _abort(context, error)

    return _like(handler, stream if handler.response_streaming else call)


def _like(handler: Any, behaviour: Callable[..., Any]) -> Any:
    """`behaviour` in the place of a handler that streams both ways or neither."""
    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


async def _abort(context: Any, error: Exception) -> None:
    if not isinstance(error, EngineError):
        log.error("a call failed", exc_info=error)
        error = Internal("The engine failed.")
    status, details = to_status(error)
    await context.abort(status, error.message, trailing_metadata=((METADATA_KEY, details),))
