"""One long text stops nobody: not the event loop, not short texts, not another tenant's long one."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from gateway import lanes
from gateway.lanes import Abandoned
from gateway.tokens import Nobody, Text, TooLong
from tests.gateway.dialects import DIALECTS

LONG = lanes.LONG
SOON = 30.0  # seconds, after which it never comes


@pytest.fixture
def text() -> Text:
    return DIALECTS["chatml"].text()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


async def begun(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, SOON)


async def test_the_event_loop_goes_on_while_a_long_text_is_tokenised(text: Text) -> None:
    ticks = 0
    work = asyncio.create_task(lanes.run(lambda _: text.encode("ab " * 500_000, special=False), characters=LONG))
    while not work.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert len(await work) == 1_500_000
    assert ticks > 10


async def test_short_texts_and_another_tenant_s_long_one_wait_for_no_long_one(gate: threading.Event) -> None:
    started = threading.Event()

    def hold(_: Abandoned) -> bool:
        started.set()
        return gate.wait(SOON)

    mine = [asyncio.create_task(lanes.run(hold, characters=LONG, share="acme")) for _ in range(20)]
    await begun(started)
    other = await asyncio.wait_for(lanes.run(lambda _: "other", characters=LONG, share="globex"), SOON)
    short = await asyncio.wait_for(lanes.run(lambda _: "short", share="acme"), SOON)
    assert (other, short) == ("other", "short")
    assert not any(task.done() for task in mine)
    gate.set()
    assert all(await asyncio.gather(*mine))


async def test_what_nobody_waits_for_is_not_begun_or_stops(gate: threading.Event) -> None:
    started, stopped, ran = threading.Event(), threading.Event(), threading.Event()

    def hold(abandoned: Abandoned) -> None:
        started.set()
        while not abandoned():
            if gate.wait(0.01):
                return
        stopped.set()

    running = asyncio.create_task(lanes.run(hold, characters=LONG, share="acme"))
    waiting = asyncio.create_task(lanes.run(lambda _: ran.set(), characters=LONG, share="acme"))
    await begun(started)
    for task in (waiting, running):
        task.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    await begun(stopped)
    await lanes.run(lambda _: None, characters=LONG, share="acme")
    assert not ran.is_set()


def test_a_text_that_can_t_fit_is_refused_before_or_soon_after_it_is_begun(text: Text) -> None:
    looks = []

    def abandoned() -> bool:
        looks.append(1)
        return False

    limit = 50_000
    with pytest.raises(TooLong) as refused:
        text.measure(["x" * (limit * text.longest + 1)], limit, abandoned)
    assert (refused.value.tokens, looks) == (limit + 1, [])
    with pytest.raises(TooLong) as refused:
        text.measure(["a" * 9, "é" * (limit * 9)], limit, abandoned)
    assert limit < refused.value.tokens <= limit * 18
    assert 0 < len(looks) < 5
    text.measure(["<|endoftext|>" * (limit // 2 + 9000)], limit, abandoned)
    with pytest.raises(Nobody):
        text.measure(["x" * (limit * 9)], limit, lambda: True)
