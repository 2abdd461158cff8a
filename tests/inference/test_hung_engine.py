"""An engine that hangs (stopped, not killed) is one that is down, soon; and one that goes on serves again."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
from django.conf import settings

from config import signs
from inference.client import Delta, EngineClient, EngineDown, Event, Generation, Sampling
from tests.processes import wait_for

NEVER = 40.0  # seconds; what takes less was noticed, and did not wait for the call's own end


@pytest.fixture
def hanging(engine: str) -> contextlib.AbstractContextManager[None]:
    """`with hanging:` the engine is stopped."""

    @contextlib.contextmanager
    def stopped() -> Iterator[None]:
        (process,) = (p for p in psutil.process_iter() if engine in _line(p) and "inference.server" in _line(p))
        os.kill(process.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: process.status() == psutil.STATUS_STOPPED, 30, "the engine being stopped")
            yield
        finally:
            os.kill(process.pid, signal.SIGCONT)

    return stopped()


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[EngineClient]:
    made = EngineClient(settings.LORAYARD.engine_url, settings.LORAYARD.engine_secret)
    try:
        yield made
    finally:
        await made.close()


def request(tokens: int) -> Generation:
    return Generation("hung", [5, 6, 7], Sampling(max_tokens=tokens, temperature=0, ignore_eos=True))


async def rest(events: AsyncIterator[Event]) -> None:
    async with asyncio.timeout(NEVER):
        async for _ in events:
            pass


async def test_calls_under_way_end_new_ones_fail_fast_and_all_is_well_when_it_goes_on(
    hanging: contextlib.AbstractContextManager[None],
) -> None:
    async with client() as engine:
        events = engine.generate(request(500))
        async for event in events:
            if isinstance(event, Delta):
                break
        with hanging:
            with pytest.raises(EngineDown):
                await rest(events)
            with pytest.raises(EngineDown):
                await rest(engine.generate(request(1)))
        async with asyncio.timeout(NEVER):
            while True:
                with contextlib.suppress(EngineDown):
                    assert [event async for event in engine.generate(request(1))]
                    break


async def test_a_stopped_engine_says_nothing_to_a_greeting_and_a_running_one_does(
    engine: str, hanging: contextlib.AbstractContextManager[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "WAIT", 1.0)
    speaks = signs.speaks_http2(engine)
    with hanging:
        assert not await asyncio.to_thread(speaks, 0)
    monkeypatch.setattr(signs, "WAIT", 30.0)
    assert await asyncio.to_thread(speaks, 0)
