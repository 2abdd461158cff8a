"""Connections that say nothing, little, or half; over real sockets, with a small application behind them."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from config import bodies, connections
from config.bodies import Bounded
from config.connections import SPARE, Connection, Lobby, Socket
from gateway import pace
from gateway.handler import GatewayHandler

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
PROBE = GET.replace(b"/x", b"/healthz")
SOON = 20.0  # seconds; tells too late from never

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[..., Any]


class Small:
    """Reads what comes, waits until it may answer, says what it read; notes whose client left before."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.left = asyncio.Event()
        self.open.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        gone = asyncio.ensure_future(receive())
        await asyncio.wait((gone, asyncio.ensure_future(self.open.wait())), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.left.set()
        gone.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-read", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": b"answer"})


@pytest.fixture
def application() -> Small:
    return Small()


@asynccontextmanager
async def serving(application: Any) -> AsyncIterator[int]:
    """The port of a server of this application's."""
    config = uvicorn.Config(
        application, port=0, http=Connection, ws=Socket, lifespan="off", log_config=None, proxy_headers=False
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    listening = socket.create_server(("127.0.0.1", 0))
    await server.startup([listening])
    try:
        yield listening.getsockname()[1]
    finally:
        server.force_exit = True
        await server.shutdown([listening])


@pytest.fixture
def lobby(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lobby]:
    """lobby(limit, per_address): makes it the process'."""

    def made(limit: int = 100, per_address: int = 100, **more: Any) -> Lobby:
        own = Lobby(limit, per_address, **more)
        monkeypatch.setattr(connections, "lobby", lambda: own)
        return own

    made()
    return made


async def connect(port: int, *words: bytes) -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for word in words:
        writer.write(word)
    await writer.drain()
    return reader, writer


async def drip(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.05)


async def said(streams: Streams) -> bytes:
    """All until the server hangs up."""
    async with asyncio.timeout(SOON):
        return await streams[0].read()


async def asked(port: int, request: bytes = GET) -> bytes:
    return await said(await connect(port, request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))


@pytest.mark.parametrize("words", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n"])
async def test_a_head_that_does_not_come_is_not_waited_for(
    application: Small, lobby: Serve, monkeypatch: pytest.MonkeyPatch, words: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with serving(application) as port:
        answer = await said(await connect(port, words))
    assert answer == b"" or (answer.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in answer)
    assert bool(answer) == (len(words) > 2)


async def test_a_head_that_comes_in_drops_is_not_waited_for(
    application: Small, lobby: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an answer on the same connection, too."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    async with serving(application) as port:
        streams = await connect(port, GET, b"GET /")
        dripping = asyncio.create_task(drip(streams[1]))
        answers = await said(streams)
        dripping.cancel()
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answers


async def test_an_answer_may_take_longer_than_a_head(
    application: Small, lobby: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    application.open.clear()
    async with serving(application) as port:
        streams = await connect(port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"GET /next")
        await asyncio.sleep(0.5)
        application.open.set()
        assert b"200 OK" in await said(streams)


async def test_a_head_without_an_end_is_refused(application: Small, lobby: Serve) -> None:
    async with serving(application) as port:
        streams = await connect(port, b"GET / HTTP/1.1\r\n" + 66 * (b"x: " + b"y" * 1000 + b"\r\n"))
        assert (await said(streams)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_who_closes_a_half_gets_the_answer(application: Small, lobby: Serve, version: str) -> None:
    application.open.clear()
    async with serving(application) as port:
        streams = await connect(port, f"POST / HTTP/{version}\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".encode())
        streams[1].write_eof()
        await asyncio.sleep(0.3)
        application.open.set()
        answer = await said(streams)
    assert b"x-read: 3" in answer
    assert b"answer" in answer
    assert not application.left.is_set()


async def test_who_closes_both_halves_is_gone_before_the_answer(application: Small, lobby: Serve) -> None:
    application.open.clear()
    async with serving(application) as port:
        _, writer = await connect(port, GET)
        writer.close()
        async with asyncio.timeout(SOON):
            await application.left.wait()
        application.open.set()


async def test_who_closes_a_half_in_the_middle_of_a_body_is_gone(application: Small, lobby: Serve) -> None:
    async with serving(application) as port:
        streams = await connect(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        streams[1].write_eof()
        assert await said(streams) == b""


async def test_who_comes_when_all_places_are_taken_by_idle_ones_takes_the_oldests(
    application: Small, lobby: Serve
) -> None:
    lobby(limit=3)
    async with serving(application) as port:
        idle = [await connect(port) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert b"200 OK" in await asked(port)
        assert await said(idle[0]) == b""
        idle[2][1].write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b"200 OK" in await said(idle[2])


@pytest.mark.parametrize(
    ("bounds", "status"), [((3, 100), 503), ((100, 3), 429)], ids=["of the process", "of an address"]
)
async def test_beyond_the_bound_probes_are_answered_and_others_told_to_come_later(
    application: Small, lobby: Serve, bounds: tuple[int, int], status: int
) -> None:
    lobby(*bounds)
    application.open.clear()
    async with serving(application) as port:
        busy = [await connect(port, GET) for _ in range(3)]
        await asyncio.sleep(0.1)
        refused = await asked(port)
        assert refused.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"retry-after: 1" in refused
        assert (
            json.loads(refused.partition(b"\r\n\r\n")[2].split(b"\r\n")[1])["error"]["code"] == "too_many_connections"
        )
        upgrade = GET.replace(b"Host", b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nHost")
        assert str(status).encode() in await said(
            await connect(port, upgrade.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\n\r\n"))
        )
        probe = asyncio.create_task(asked(port, PROBE))
        await asyncio.sleep(0.1)
        application.open.set()
        assert b"200 OK" in await probe
        for streams in busy:
            streams[1].close()
        await asyncio.sleep(0.1)
        assert b"200 OK" in await asked(port)


async def test_silent_ones_beyond_the_bound_make_way_for_probes(application: Small, lobby: Serve) -> None:
    lobby(limit=1)
    application.open.clear()
    async with serving(application) as port:
        await connect(port, GET)
        silent = [await connect(port) for _ in range(2 * SPARE)]
        await asyncio.sleep(0.1)
        application.open.set()
        assert b"200 OK" in await asked(port, PROBE)
        assert len(silent) == 2 * SPARE


def test_an_address_takes_the_place_of_its_own_idle_one_alone() -> None:
    class Idle:
        def __init__(self) -> None:
            self.transport, self.closed = self, False

        def close(self) -> None:
            self.closed = True

    lobby = Lobby(limit=10, per_address=2)
    stranger, *own = [Idle() for _ in range(4)]
    assert not lobby.enter(stranger, "10.0.0.1")
    assert not any(lobby.enter(one, "10.0.0.2") for one in own)
    assert [one.closed for one in (stranger, *own)] == [False, True, False, False]
    for one in own:
        lobby.busy(one)
    assert lobby.enter(Idle(), "10.0.0.2") == 429
    assert not lobby.enter(Idle(), "10.0.0.1")


def test_a_trusted_proxy_may_bring_more_than_one_address() -> None:
    from ipaddress import ip_network

    lobby = Lobby(limit=10, per_address=1, trusted=[ip_network("10.0.0.0/8")])
    for _ in range(3):
        one: Any = object()
        assert not lobby.enter(one, "10.0.0.2")
        lobby.busy(one)


@pytest.mark.parametrize("plane", ["management", "data"])
@pytest.mark.parametrize("drops", [False, True], ids=["silent", "in drops"])
async def test_a_body_that_does_not_come_is_not_waited_for(
    application: Small, lobby: Serve, monkeypatch: pytest.MonkeyPatch, plane: str, drops: bool
) -> None:
    monkeypatch.setattr(pace, "WINDOW", 0.4)
    async with serving(Bounded(application) if plane == "management" else GatewayHandler()) as port:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx"
        streams = await connect(port, head)
        dripping = asyncio.create_task(drip(streams[1]) if drops else asyncio.sleep(0))
        async with asyncio.timeout(SOON):
            answer = await streams[0].readuntil(b"request_timeout")
        dripping.cancel()
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_comes_fast_enough_is_read_however_long_it_takes(
    application: Small, lobby: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "WINDOW", 1.0)
    monkeypatch.setattr(pace, "LEAST", 10)
    async with serving(Bounded(application)) as port:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 300\r\n\r\n"
        streams = await connect(port, head)
        for _ in range(15):
            await asyncio.sleep(0.1)
            streams[1].write(b"x" * 20)
        assert b"x-read: 300" in await said(streams)


async def test_who_is_refused_in_the_middle_of_a_body_hears_why(application: Small, lobby: Serve) -> None:
    """What still comes is read for a while, since a reset would reach the client before the answer does."""
    async with serving(Bounded(application)) as port:
        reader, writer = await connect(port, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n" + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = await said((reader, writer))
    assert answers.startswith(b"HTTP/1.1 413 ")
    assert b"HTTP/1.1 200 " in answers


async def test_an_encoded_body_is_refused_where_none_is_decoded(application: Small, lobby: Serve) -> None:
    async with serving(Bounded(application)) as port:
        head = b"POST /api/v1/keys HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
        answer = await asked(port, head.replace(b"abc", b"") + b"abc")
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert bodies.Encoded.code.encode() in answer
