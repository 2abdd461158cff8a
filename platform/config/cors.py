"""Knows which browsers' pages may call the data plane, and how they are told; nothing of keys, and never of cookies."""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from django.conf import settings

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Any], Awaitable[None]]

EXPOSED = b"x-request-id, openai-processing-ms, x-adapter-version, retry-after, x-should-retry"
METHODS = b"GET, HEAD, POST, DELETE"
REMEMBERED = b"600"  # seconds that a browser may remember the answer to a preflight
NAMES = re.compile(rb"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")


class Cors:
    """The application, which pages of LORAYARD_CORS_ORIGINS may call under /v1 with a key of theirs.

    Credentials that a browser adds by itself are never allowed: the console's session is its own pages'.
    """

    def __init__(self, application: Any) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is None or not scope["path"].startswith("/v1/") or not _may(origin):
            await self._application(scope, receive, send)
        elif scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await _preflight(origin, headers.get(b"access-control-request-headers", b""), send)
        else:
            await self._application(scope, receive, partial(_send_marked, send, origin))


def _may(origin: bytes) -> bool:
    origins = settings.LORAYARD.origins
    return "*" in origins or origin.decode("latin-1").lower() in origins


async def _preflight(origin: bytes, names: bytes, send: Send) -> None:
    headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", REMEMBERED),
        (b"vary", b"origin, access-control-request-headers"),
    ]
    if NAMES.fullmatch(names):
        headers.append((b"access-control-allow-headers", names))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _send_marked(send: Send, origin: bytes, message: Any) -> None:
    if message["type"] == "http.response.start":
        marks = [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED),
            (b"vary", b"origin"),
        ]
        message = {**message, "headers": [*message.get("headers", []), *marks]}
    await send(message)
