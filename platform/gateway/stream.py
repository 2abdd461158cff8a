"""Knows how an answer is sent, whole or as server-sent events, and how a failure under way ends it; knows no shape."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from pydantic_core import to_json

from gateway import metrics
from gateway.errors import ApiError, translated
from gateway.generation import Run
from gateway.views import json_response

DONE = b"data: [DONE]\n\n"


class Shape(Protocol):
    """How one endpoint writes an answer down."""

    @property
    def id(self) -> str: ...

    def chunks(self, run: Run) -> AsyncIterator[bytes]: ...

    async def whole(self, run: Run) -> dict[str, Any]: ...


class EventStream(StreamingHttpResponse):
    """A run's events. `aclose` cancels in the engine what still runs, whether or not the stream was ever begun."""

    def __init__(self, run: Run, chunks: AsyncGenerator[bytes]) -> None:
        self._run = run
        self._chunks = chunks
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chunks, content_type="text/event-stream; charset=utf-8", headers=headers)

    def __aiter__(self) -> AsyncGenerator[bytes]:
        """The one generator itself, so that closing it takes effect at once and not when it is collected."""
        return self._chunks

    async def aclose(self) -> None:
        await self._chunks.aclose()
        await self._run.aclose()


async def answer(run: Run, shape: Shape, *, stream: bool) -> HttpResponseBase:
    """The response, which from then on owns the run."""
    run.name(shape.id)
    if stream:
        return labelled(EventStream(run, _ending_well(run, shape.chunks(run))), run)
    async with run:
        return labelled(json_response(await shape.whole(run)), run)


def labelled(response: HttpResponseBase, run: Run) -> HttpResponseBase:
    """With x-adapter-version, which says what a movable name meant. The base model has none."""
    if run.target.version is not None:
        response.headers["x-adapter-version"] = f"v{run.target.version}"
    return response


async def _ending_well(run: Run, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The chunks; a failure under way becomes the last of them, so that no stream is ever silently cut."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:  # whatever it is, the client is told
        yield sse({"error": cut(run, error).error})


def cut(run: Run, error: Exception) -> ApiError:
    """What a client in mid-stream is told."""
    told = translated(error)
    metrics.CUT.labels(run.exchange.route, told.code or "").inc()
    return told


def sse(data: dict[str, Any], event: str | None = None) -> bytes:
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + to_json(data, inf_nan_mode="null") + b"\n\n"
