"""Knows how much body a caller may send before a view has looked at it; nothing of what is in it.

Django writes a request's whole body to disk before any view or middleware runs, so whoever is nobody yet gets little
room: a large body is read only from a live key or a logged-in session.
"""

import asyncio
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.db import connections

from adapters.limits import DEFAULT
from apikeys.services import verify

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Any], Awaitable[None]]

SMALL = 1 << 20  # bytes: any form or JSON body
LARGE = DEFAULT.total + SMALL  # an upload
PART = (64 << 20) + SMALL  # a part of one
REFUSED = (
    b'{"error":{"message":"The body is too large.","type":"invalid_request_error","param":null,"code":"too_large"}}'
)


async def bounded(application: Any, scope: Scope, receive: Receive, send: Send) -> None:
    """The application, which reads no more than the caller may send. Beyond it the answer is 413."""
    room, read, answered = SMALL, 0, False
    most = _most(scope["path"])

    async def counted() -> dict[str, Any]:
        nonlocal room, read
        message = await receive()
        read += len(message.get("body", b""))
        if read > room and room < most and await asyncio.to_thread(_known, scope):
            room = most
        return message if read <= room else {"type": "http.disconnect"}

    async def told(message: Any) -> None:
        nonlocal answered
        answered = True
        await send(message)

    await application(scope, counted, told)
    if read > room and not answered:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSED})


def _most(path: str) -> int:
    """What a caller who is known may send here."""
    if path.startswith("/v1/uploads"):
        return PART if path.endswith("/parts") else SMALL
    return LARGE


def _known(scope: Scope) -> bool:
    """Whether the caller holds a live key or a session that somebody logged into."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    try:
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return verify(token.strip()) is not None
        return _logged_in(headers.get(b"cookie", ""))
    finally:
        connections.close_all()


def _logged_in(cookie: str) -> bool:
    try:
        morsel = SimpleCookie(cookie).get(settings.SESSION_COOKIE_NAME)
    except CookieError:
        return False
    sessions = import_module(settings.SESSION_ENGINE)
    return morsel is not None and SESSION_KEY in sessions.SessionStore(morsel.value)
