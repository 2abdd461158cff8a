"""What an open stream holds, and what it gives back when its client leaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from tests.gateway.conftest import Customer

Load = Callable[[], Awaitable[tuple[float, float]]]
TOKENS, ANSWERS = 450, 16
LONG: dict[str, Any] = {"max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}


@asynccontextmanager
async def frees(load: Load) -> AsyncIterator[None]:
    """What is begun within is left at its end; soon the engine does nothing more, with work left undone."""
    _, before = await load()
    yield
    left = time.monotonic()
    while (await load())[0]:
        assert time.monotonic() < left + 60, "sequences still run although their client has left"
        await asyncio.sleep(0.02)
    assert (await load())[1] - before < TOKENS * ANSWERS


async def open_stream(customer: Customer, **options: Any) -> Any:
    stream = await customer.async_openai.chat.completions.create(
        model="support", messages=[{"role": "user", "content": "hello"}], stream=True, **LONG, **options
    )
    await anext(stream)
    return stream


async def test_a_stream_that_is_left_frees_its_sequences(buyer: Customer, load: Load) -> None:
    async with frees(load):
        stream = await open_stream(buyer, n=ANSWERS)
        await stream.close()


async def test_a_call_that_is_left_before_its_answer_frees_its_sequences(buyer: Customer, load: Load) -> None:
    async with frees(load):
        call = asyncio.create_task(
            buyer.async_openai.chat.completions.create(
                model="support", messages=[{"role": "user", "content": "hello"}], n=ANSWERS, **LONG
            )
        )
        while not (await load())[0]:
            assert not call.done()
        call.cancel()


async def test_a_websocket_that_is_left_frees_every_lane(buyer: Customer, load: Load) -> None:
    options: Any = {"max_queue": None}  # read what comes, so that closing does not wait behind it
    connect = buyer.async_openai.responses.connect(websocket_connection_options=options)
    async with frees(load), connect as connection:
        for lane in range(ANSWERS):
            event: Any = {"type": "response.create", "model": "support", "input": "hello", "stream_id": str(lane)}
            event |= {"max_output_tokens": TOKENS, "ignore_eos": True}
            await connection.send(event)
        started: Any = await connection.recv()
        assert started.type == "response.created"


async def test_open_streams_hold_no_thread(buyer: Customer, load: Load) -> None:
    web = psutil.Process(_listener(buyer.url))
    for stream in await asyncio.gather(*[open_stream(buyer) for _ in range(24)]):
        await stream.close()
    before = web.num_threads()
    streams = await asyncio.gather(*[open_stream(buyer) for _ in range(24)])
    running, during = (await load())[0], web.num_threads()
    for stream in streams:
        await stream.close()
    assert running > 12
    assert during < before + running / 2, "each stream has a thread; pools may still have grown by a few"


def _listener(url: str) -> int:
    """The process that listens at this address."""
    port = int(url.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return int(connection.pid)
    pytest.fail("nobody listens")
