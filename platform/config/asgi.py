"""One ASGI application out of three. Knows which path goes where; knows nothing of what is said there.

`/v1/…` over HTTP goes to the gateway's own handler, which has no middleware and holds no thread while a stream is open;
the rest of HTTP, and files under `/v1/`, to Django; WebSockets to Channels.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

from django.core.asgi import get_asgi_application

console: Any = get_asgi_application()

from channels.routing import URLRouter  # noqa: E402 - apps must be loaded first
from django.conf import settings  # noqa: E402
from django.urls import re_path  # noqa: E402

from audit.requests import Utf8Request  # noqa: E402
from config.bodies import Bounded  # noqa: E402
from config.cors import Cors  # noqa: E402
from config.edges import seen_through, tidied, uncached  # noqa: E402
from config.failures import Answering  # noqa: E402
from gateway import lifespan  # noqa: E402
from gateway.handler import application as data_plane  # noqa: E402
from gateway.routing import websocket_urlpatterns  # noqa: E402
from registry import quarantine  # noqa: E402

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Any], Awaitable[None]]


async def _no_such_socket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": 4404})


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await lifespan.end()
            await send({"type": "lifespan.shutdown.complete"})
            return
        lifespan.begin()
        await asyncio.to_thread(quarantine.sweep_incoming)  # what this one's predecessor was reading
        await send({"type": "lifespan.startup.complete"})


FILES = ("/v1/uploads/", "/v1/files/")
console.request_class = Utf8Request
control_plane = Answering(Bounded(console))
nowhere: Any = _no_such_socket
sockets = URLRouter([*websocket_urlpatterns, re_path(r"", nowhere)])


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """By the path's first segment."""
    path = f"{scope['path']}/"
    tokens = path.startswith("/v1/") and not path.startswith(FILES)
    handler: Any = data_plane if tokens else control_plane
    await handler(scope, receive, send)


http = Cors(_answer)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Dispatches on the connection's type."""
    match scope["type"]:
        case "http":
            scope = tidied(seen_through(scope, settings.LORAYARD.proxies))
            await http(scope, receive, uncached(scope, send))
        case "websocket":
            await sockets(tidied(seen_through(scope, settings.LORAYARD.proxies)), receive, send)
        case _:
            await _lifespan(scope, receive, send)
