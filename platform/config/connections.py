"""Knows how long a connection may say nothing, how many there may be, and when a client has gone; nothing of requests.

uvicorn's protocols with what they lack: a deadline and a size for the head of a request, a bound on the connections of
the process and of one address, and an answer for a client that has closed its half of the connection and still listens.
"""

import asyncio
import json
import resource
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

from django.conf import settings
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from config.edges import PROBES, Network

HEAD_SECONDS = 15.0  # from a request's first byte, or a connection's beginning, to the head's end
MAX_HEAD = 64 * 1024  # bytes
LINGER = 2.0  # seconds that who is refused has to hear it
SPARE = 64  # connections beyond the limit, where probes are answered and all others told to come back later
UNSENT = (
    16 * 1024
)  # bytes of an answer that are kept ready; the kernel would take megabytes for a client that reads none
OTHER_FILES = 192  # that the process needs besides: libraries, logs, the database, the engine, uploads on their way
FIRST_LOOK, LONGEST_LOOK = 0.02, 5.0  # seconds between looks whether a client that closed its half still listens

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
Application = Callable[..., Any]


class Lobby:
    """The connections of a process, WebSockets included. Whoever comes when it is full takes the place of an idle one.

    limit: connections; per_address: of one client's address, except those in `trusted`, behind which many clients are.
    """

    def __init__(self, limit: int, per_address: int, trusted: Iterable[Network] = ()) -> None:
        self._limit, self._per_address, self._trusted = limit, per_address, tuple(trusted)
        self._address: dict[Any, str] = {}
        self._of: Counter[str] = Counter()
        self._idle: OrderedDict[Any, None] = OrderedDict()  # longest first
        self._spare: OrderedDict[Any, None] = OrderedDict()

    def enter(self, connection: Any, address: str) -> int:
        """The status for whom there is no room, else 0. Without room it is a spare one; the oldest makes way."""
        crowded = self._of[address] >= self._per_address and not self._is_trusted(address)
        if crowded and not self._end_idle(address):
            return self._put_aside(connection, 429)
        if len(self._address) >= self._limit and not self._end_idle(None):
            return self._put_aside(connection, 503)
        self._address[connection] = address
        self._of[address] += 1
        self._idle[connection] = None
        return 0

    def leave(self, connection: Any) -> None:
        self._spare.pop(connection, None)
        self._idle.pop(connection, None)
        address = self._address.pop(connection, None)
        if address is not None:
            self._of[address] -= 1
            self._of += Counter[str]()  # forgets those at zero

    def busy(self, connection: Any) -> None:
        """It has a request under way, and makes way for nobody."""
        self._idle.pop(connection, None)

    def idle(self, connection: Any) -> None:
        if connection in self._address:
            self._idle[connection] = None

    def _end_idle(self, address: str | None) -> bool:
        """Whether an idle connection, of this address or any, could be ended."""
        for connection in self._idle:
            if address is None or self._address[connection] == address:
                self.leave(connection)
                connection.transport.close()
                return True
        return False

    def _put_aside(self, connection: Any, status: int) -> int:
        while len(self._spare) >= SPARE:
            oldest, _ = self._spare.popitem(last=False)
            oldest.transport.abort()
        self._spare[connection] = None
        return status

    def _is_trusted(self, address: str) -> bool:
        return bool(address) and any(ip_address(address) in network for network in self._trusted)


@cache
def lobby() -> Lobby:
    """This process' own, which leaves room below the limit of open files for all that is no connection."""
    env = settings.LORAYARD
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(files - OTHER_FILES - SPARE, files // 4)
    return Lobby(min(env.connections, room), env.connections_per_address, env.proxies)


class Connection(HttpToolsProtocol):
    """HTTP, whose head has a deadline and whose client may close its half early."""

    _head: asyncio.TimerHandle | None = None
    _begun = False  # part of a head has come
    _refused = False  # what still comes is read and dropped
    _head_bytes = 0
    _turned_away = 0  # the status for all but probes, where there is no room

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        _hold_back(transport)
        self._turned_away = lobby().enter(self, _host(self.client))
        if self._turned_away:
            self.app = _Full(self.app, self._turned_away)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        lobby().leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        super().data_received(data)
        if self._begun:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._refuse(431, "The head of a request may have 65536 bytes at most.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun, self._head_bytes = True, 0
        self._await_head()

    def on_headers_complete(self) -> None:
        self._begun = False
        self._stop_waiting()
        lobby().busy(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else one that was sent ahead is under way
            lobby().idle(self)

    def handle_websocket_upgrade(self) -> None:
        self._stop_waiting()
        lobby().leave(self)
        if self._turned_away:
            self._refuse(self._turned_away, FULL[self._turned_away])
        else:
            super().handle_websocket_upgrade()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has sent its last word may still be listening, and gets its answer."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        self._look(FIRST_LOOK)
        return True

    def _look(self, pause: float) -> None:
        """Says something that asks for nothing: the machine of a client that has gone answers it with a reset.

        Nothing else tells the two apart. Once the answer has begun, its own bytes do; HTTP/1.0 knows no such word.
        """
        if self.transport.is_closing() or self.cycle.response_started or self.cycle.scope["http_version"] == "1.0":
            return
        self.transport.write(CONTINUE)
        self.loop.call_later(pause, self._still_listens, pause)

    def _still_listens(self, pause: float) -> None:
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._look(min(2 * pause, LONGEST_LOOK))

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _head_is_late(self) -> None:
        self._head = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # who is being answered is not idle
        elif self._begun:
            self._refuse(408, "The head of the request took too long to arrive.")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answers in the place of an application, and hangs up; not at once, lest a reset outrun the answer."""
        if self.transport.is_closing() or self._refused:
            return
        self._refused = True
        headers = [*_headers(status), (b"content-length", str(len(_body(status, message))).encode())]
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode(), *(b": ".join(pair) for pair in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", _body(status, message)]))
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


class Socket(WebSocketsSansIOProtocol):
    """A WebSocket, which counts as a connection with a request under way."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        _hold_back(transport)
        lobby().enter(self, _host(self.client))
        lobby().busy(self)

    def connection_lost(self, exc: Exception | None) -> None:
        lobby().leave(self)
        super().connection_lost(exc)


FULL = {
    429: "This server holds as many connections of your address as it may. Close some, or try again soon.",
    503: "This server holds as many connections as it can. Try again soon.",
}


class _Full:
    """The application for who has no place: probes are answered, all else is told to come back later."""

    def __init__(self, application: Application, status: int) -> None:
        self._application, self._status = application, status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] in PROBES:
            await self._application(scope, receive, send)
            return
        status = self._status
        await send({"type": "http.response.start", "status": status, "headers": _headers(status)})
        await send({"type": "http.response.body", "body": _body(status, FULL[status])})


CODES = {408: "request_timeout", 429: "too_many_connections", 431: "headers_too_large", 503: "too_many_connections"}
KINDS = {429: "rate_limit_error", 503: "server_error"}


def _hold_back(transport: asyncio.Transport) -> None:
    """Whoever writes waits as soon as a client stops reading, so that no more is generated than it will read."""
    transport.set_write_buffer_limits(high=UNSENT)
    with suppress(OSError):  # a socket that is no TCP's
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


def _headers(status: int) -> list[tuple[bytes, bytes]]:
    later = [(b"retry-after", b"1")] if status in FULL else []
    return [(b"content-type", b"application/json"), (b"connection", b"close"), *later]


def _body(status: int, message: str) -> bytes:
    kind = KINDS.get(status, "invalid_request_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": CODES[status]}}).encode()


def _host(client: tuple[str, int] | None) -> str:
    return client[0] if client else ""
