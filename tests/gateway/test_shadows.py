"""What a copy of a request is to the engine, and what it never is to the tenant that asked."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from gateway import engine, meter, recorder, shadows
from inference.client import Delta, Event, Finished, Generation, Sampling, Started
from metering import ledger
from metering.models import Call, Purpose
from registry.models import BaseModel
from registry.services import Target
from rollouts.models import Arm, Outcome
from rollouts.observations import Observation
from rollouts.routing import Trial

LIVE = Generation("req", [1, 2], Sampling(max_tokens=4), digest="sha256:stable", share="acme", weight=3.0, priority=10)


class Said:
    """Events as the engine's client tells them."""

    def __init__(self, events: AsyncGenerator[Event]) -> None:
        self.made = 0
        self._events = events
        self.aclose = events.aclose

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for event in self._events:
            self.made += len(event.tokens) if isinstance(event, Delta) else 0
            yield event


class Engine:
    """Answers each sequence with two tokens, when it is let."""

    def __init__(self) -> None:
        self.asked: list[Generation] = []
        self.open = asyncio.Event()

    def generate(self, generation: Generation) -> Said:
        return Said(self._events(generation))

    async def _events(self, generation: Generation) -> AsyncGenerator[Event]:
        self.asked.append(generation)
        yield Started(2, 0)
        await self.open.wait()
        yield Delta("ok", (1, 2))
        yield Finished("stop", 2, 2, 0)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Observation]:
    observed: list[Observation] = []
    monkeypatch.setattr(recorder, "put", observed.append)
    return observed


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What went to the ledger."""
    calls: list[Call] = []
    monkeypatch.setattr(ledger, "write", calls.extend)
    return calls


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch, written: list[Call]) -> AsyncIterator[Engine]:
    known = Engine()
    monkeypatch.setattr(engine, "client", lambda: known)
    yield known
    await meter.close()


def trial(copied: bool = True) -> Trial:
    canary = Target("acme/support", "sha256:canary", "support", 2, BaseModel(name="tiny"))
    return Trial(uuid4(), uuid4(), 0, Arm.STABLE, 1, True, shadow=canary if copied else None)


def counted() -> list[Any]:
    """All that is counted of live calls."""
    names = ("lorayard_gateway_requests", "lorayard_gateway_tokens", "lorayard_gateway_first_token_seconds")
    return [sample for metric in REGISTRY.collect() if metric.name in names for sample in metric.samples]


async def test_a_copy_goes_behind_everybody_in_a_share_of_its_own_and_is_counted_apart(
    served: Engine, seen: list[Observation], written: list[Call]
) -> None:
    before = counted()
    shadows.send(trial(), [LIVE, LIVE], Call(purpose=Purpose.LIVE, adapter="support", version=1))
    served.open.set()
    await asyncio.gather(*shadows._under_way)
    (copy,) = served.asked
    assert (copy.digest, copy.share, copy.prompt) == ("sha256:canary", "shadow:acme", LIVE.prompt)
    assert copy.weight == pytest.approx(LIVE.weight / 10)
    assert copy.priority > LIVE.priority
    assert copy.start_within > 0
    assert [(one.arm, one.shadow, one.outcome, one.response) for one in seen] == [(Arm.CANARY, True, Outcome.OK, "")]
    assert counted() == before
    await meter.close()
    assert [(call.purpose, call.version, call.completion) for call in written] == [(Purpose.SHADOW, 2, 2)]


async def test_what_finds_no_place_is_not_copied_and_what_nobody_asked_for_neither(
    served: Engine, seen: list[Observation]
) -> None:
    shadows.send(trial(copied=False), [LIVE], Call())
    for _ in range(3 * shadows.PLACES):
        shadows.send(trial(), [LIVE], Call())
    await asyncio.sleep(0)
    assert len(served.asked) == shadows.PLACES
    served.open.set()
    await asyncio.gather(*shadows._under_way)
    assert len(seen) == shadows.PLACES
