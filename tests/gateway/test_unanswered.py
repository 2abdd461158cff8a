"""What a run leaves for its rollout when its client goes before the first token. The engine here says nothing."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import engine, recorder
from gateway.generation import Run
from inference.client import Event, Started
from metering.models import Call
from rollouts.models import Arm, Outcome
from rollouts.observations import Observation
from rollouts.routing import Trial


class Silent:
    """Takes every sequence, and never says a token."""

    async def generate(self, _: object) -> AsyncIterator[Event]:
        yield Started(prompt_tokens=3, cached_tokens=0, cold=False)
        await asyncio.sleep(60)


def test_a_client_that_leaves_a_silent_engine_leaves_how_long_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Observation] = []
    monkeypatch.setattr(engine, "client", Silent)
    monkeypatch.setattr(recorder, "put", kept.append)
    trial = Trial(uuid.uuid4(), uuid.uuid4(), step=0, arm=Arm.CANARY, unit=7, counted=True)

    async def asked_and_left() -> None:
        exchange: Any = SimpleNamespace(route="chat")
        route: Any = SimpleNamespace(target=None, trial=trial)
        sequence: Any = None
        run = Run(exchange, route, [sequence], 1, Call())
        await run._begin(hold=False)
        await asyncio.sleep(0.05)
        await run.aclose()

    began = time.monotonic()
    asyncio.run(asked_and_left())
    took = time.monotonic() - began
    (sample,) = [seen.sample() for seen in kept]
    assert (sample.outcome, sample.unanswered) == (Outcome.ABANDONED, True)
    assert 0.05 <= (sample.first_token or 0) <= took
