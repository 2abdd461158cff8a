"""Knows how much body a caller may send before a view has looked at it; nothing of what is in it.

Django writes a request's whole body to disk before any view or middleware runs, so whoever is nobody yet gets little
room: a large body is read only from a live key that may do what the address is for, or a logged-in session, only as far
as the quota of the key's tenant goes, and only a few at once. No body may come slowly for long, and none is encoded.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.db import connections
from django.urls import Resolver404, resolve

from adapters.limits import DEFAULT
from apikeys.credentials import token_of
from apikeys.services import ScopeMissing, missing, verify
from gateway.pace import Pace
from registry.services import limits, usage
from tenants.errors import PlatformError, QuotaExceeded, TooLarge
from tenants.isolation import within
from tenants.models import Tenant

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Any], Awaitable[None]]

SMALL = 1 << 20  # bytes: any form or JSON body
MEDIUM = (16 << 20) + SMALL  # an evaluation set
LARGE = DEFAULT.total + SMALL  # an upload
PART = (64 << 20) + SMALL  # a part of one
AT_ONCE = 4  # bodies as large as uploads of a tenant, or of a user of the console, that a process reads


class TooManyBodies(PlatformError):
    status = 429
    code = "too_many_uploads"
    kind = "rate_limit_error"
    wait = 10


class TooSlow(PlatformError):
    status = 408
    code = "request_timeout"


class Encoded(PlatformError):
    status = 415
    code = "unsupported_encoding"


@dataclass(frozen=True)
class Caller:
    """Who may send `room` bytes, and is told `beyond` that why no more. owner: who has AT_ONCE places for such bodies;
    None: it takes no place."""

    room: int
    beyond: PlatformError
    owner: str | None = None


class Bounded:
    """The application, which reads no more than the caller may send. Beyond it the answer is 413, 403 or 429."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._reading = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Who announces a large body is looked at before anything of it is read, all others once it is large."""
        body = _Body(self._reading, scope, receive, send)
        try:
            if body.plain and (body.announced <= SMALL or await body.admit(body.announced)):
                await self._application(scope, body.receive, body.send)
            await body.refuse()
        finally:
            body.end()


class _Body:
    def __init__(self, reading: Counter[str], scope: Scope, receive: Receive, send: Send) -> None:
        self._reading, self._scope, self._receive, self._send = reading, scope, receive, send
        self._caller: Caller | None = None
        self._read, self._answered = 0, False
        self._refusal: PlatformError | None = None
        self._pace, self._more = Pace(), True
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self.announced = int(length) if length.isdigit() else 0
        self._expects = b"expect" in headers
        self.plain = headers.get(b"content-encoding", b"identity").lower() == b"identity"
        if not self.plain:
            self._refusal = Encoded("Bodies are read here as they are: send this one without Content-Encoding.")

    async def receive(self) -> Mapping[str, Any]:
        try:
            message = await (self._pace.next(self._receive) if self._more else self._receive())
        except TimeoutError:
            self._refusal = TooSlow("The body took too long to arrive.")
            return {"type": "http.disconnect"}
        self._more = self._more and message.get("more_body", False)
        self._read += len(message.get("body", b""))
        fits = self._refusal is None and (self._read <= SMALL or await self.admit(self._read))
        return message if fits else {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self._answered = True
        await self._send(message)

    async def admit(self, size: int) -> bool:
        """Whether the caller may send so many bytes; if not, `refuse` says why."""
        if self._caller is None:
            self._caller = await asyncio.to_thread(_caller, self._scope, size)
            if (owner := self._caller.owner) is not None:
                if self._reading[owner] >= AT_ONCE:
                    self._refusal = TooManyBodies(f"{AT_ONCE} uploads of yours are being read; send this one later.")
                self._reading[owner] += 1
        if size > self._caller.room:
            self._refusal = self._caller.beyond
        return self._refusal is None

    async def refuse(self) -> None:
        if self._refusal is None or self._answered:
            return
        headers = [(b"content-type", b"application/json")]
        if self._expects:
            headers.append((b"connection", b"close"))  # the body, which was not asked for, will not come
        headers += [(name.lower().encode(), value.encode()) for name, value in self._refusal.headers.items()]
        await self._send({"type": "http.response.start", "status": self._refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": json.dumps(self._refusal.body).encode()})

    def end(self) -> None:
        if self._caller is not None and (owner := self._caller.owner) is not None:
            self._reading[owner] -= 1
            self._reading += Counter[str]()  # forgets those at zero


def _most(path: str) -> int:
    """What a caller who is known may send here."""
    if path.startswith("/v1/uploads"):
        return PART if path.endswith("/parts") else SMALL
    if path.startswith("/api/v1/"):
        return LARGE if path.endswith("/versions") else MEDIUM
    return LARGE


def _caller(scope: Scope, size: int) -> Caller:
    """The holder of a live key, or of a session that somebody logged into; else nobody."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    most, too_large = _most(scope["path"]), TooLarge("The body is too large.")
    try:
        token = token_of(headers)
        if token:
            key, needed = verify(token), _needed(scope)
            if key is None or needed is None:
                return Caller(SMALL, too_large)
            if not key.may(needed):
                return Caller(SMALL, ScopeMissing(missing(key, needed)))
            if most < LARGE:
                return Caller(most, too_large)
            if key.tenant is None:
                return Caller(most, too_large, str(key.pk))
            return _within_quota(key.tenant, size, most, too_large)
        user = _logged_in(headers.get("cookie", ""))
        return Caller(SMALL, too_large) if user is None else Caller(most, too_large, f"user:{user}")
    finally:
        connections.close_all()


def _needed(scope: Scope) -> str | None:
    """The scope that the view at this address asks a key for; None where no view takes keys."""
    try:
        view = getattr(resolve(scope["path"]).func, "cls", None)
    except Resolver404:
        return None
    scopes: Mapping[str, str] = getattr(view, "scopes", {})
    return scopes.get(scope["method"])


def _within_quota(tenant: Tenant, size: int, most: int, too_large: PlatformError) -> Caller:
    """What the tenant may still store, and the form around it."""
    with within(tenant.pk):
        used, limit = usage(tenant).bytes, limits(tenant).bytes
    room = max(limit - used, 0) + SMALL
    if room >= most:
        return Caller(most, too_large, str(tenant.pk))
    return Caller(room, QuotaExceeded("bytes", used=used, asked=size, limit=limit), str(tenant.pk))


def _logged_in(cookie: str) -> str | None:
    """The id of the user whose session this is."""
    try:
        morsel = SimpleCookie(cookie).get(settings.SESSION_COOKIE_NAME)
    except CookieError:
        return None
    sessions = import_module(settings.SESSION_ENGINE)
    return None if morsel is None else sessions.SessionStore(morsel.value).get(SESSION_KEY)
