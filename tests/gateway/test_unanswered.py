"""What a run leaves for its rollout when its client goes before the first token. The engines here say nothing."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import engine, recorder
from gateway.generation import Run
from inference.client import Event, Started
from metering.models import Call
from rollouts.models import Arm, Outcome, Sample
from rollouts.observations import Observation
from rollouts.routing import Trial
from rollouts.services.evidence import _measured


class Silent:
    """Takes every sequence, and never says a token."""

    def generate(self, _: object) -> "Answer":
        return Answer(self._events())

    async def _events(self) -> AsyncGenerator[Event]:
        yield Started(prompt_tokens=3, cached_tokens=0, cold=False)
        await asyncio.sleep(60)


class Loading:
    """Has seated nobody yet, maybe since the adapter is on its way."""

    def generate(self, _: object) -> "Answer":
        return Answer(self._events())

    async def _events(self) -> AsyncGenerator[Event]:
        await asyncio.sleep(60)
        yield Started(prompt_tokens=3, cached_tokens=0, cold=True)


class Answer:
    """Events of which none is a token, as the client hands them out."""

    made = 0

    def __init__(self, events: AsyncGenerator[Event]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()


def test_a_client_that_leaves_a_silent_engine_leaves_how_long_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    sample = left_behind(Silent, monkeypatch)
    took = time.monotonic() - began
    assert (sample.outcome, sample.unanswered, sample.cold) == (Outcome.ABANDONED, True, False)
    assert 0.05 <= (sample.first_token or 0) <= took


def test_a_client_that_leaves_before_its_turn_says_nothing_of_the_versions_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = left_behind(Loading, monkeypatch)
    assert (sample.outcome, sample.cold) == (Outcome.ABANDONED, True)
    assert _measured(sample).first_token is None


def left_behind(serving: type[Any], monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Of a client that leaves after 50 ms."""
    kept: list[Observation] = []
    monkeypatch.setattr(engine, "client", serving)
    monkeypatch.setattr(recorder, "put", kept.append)
    trial = Trial(uuid.uuid4(), uuid.uuid4(), step=0, arm=Arm.CANARY, unit=7, counted=True)

    async def asked_and_left() -> None:
        exchange: Any = SimpleNamespace(route="chat")
        route: Any = SimpleNamespace(target=None, trial=trial)
        sequence: Any = None
        run = Run(exchange, route, [sequence], 1, Call())
        with suppress(TimeoutError):
            await asyncio.wait_for(run._begin(hold=False), 0.05)
            await asyncio.sleep(0.05)
        await run.aclose()

    asyncio.run(asked_and_left())
    (sample,) = [seen.sample() for seen in kept]
    return sample
