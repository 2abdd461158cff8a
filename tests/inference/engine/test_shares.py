"""Who is next: tenants by their weights, a tenant's own by their priority, and nobody beyond the queue."""

from collections.abc import Callable
from typing import Any

import pytest

from inference.errors import EngineBusy


def test_a_thousand_requests_of_one_tenant_delay_another_only_by_a_few_steps(bench: Callable[..., Any]) -> None:
    engine = bench(rows=4, blocks=256)
    for _ in range(1000):
        engine.submit(share="greedy", tokens=8)
    engine.steps(40)
    asked = engine.submit(share="modest", tokens=1)
    engine.steps(16)
    assert engine.ended(asked), "the modest tenant waited behind the greedy one"


def test_service_follows_the_weights(bench: Callable[..., Any]) -> None:
    engine = bench(rows=2)
    heavy = [engine.submit(share="heavy", weight=3.0) for _ in range(60)]
    light = [engine.submit(share="light") for _ in range(60)]
    while len(engine.begun()) < 60:
        engine.steps()
    started = engine.begun()
    assert sum(s in heavy for s in started) == pytest.approx(3 * sum(s in light for s in started), rel=0.15)


def test_an_idle_tenant_saves_up_no_service(bench: Callable[..., Any]) -> None:
    engine = bench(rows=2)
    early = engine.submit(share="idle", tokens=1)
    busy = [engine.submit(share="busy") for _ in range(80)]
    engine.steps(100)
    back = [engine.submit(share="idle") for _ in range(40)]
    before = len(engine.begun())
    engine.steps(40)
    since = engine.begun()[before:]
    assert engine.ended(early)
    assert abs(sum(s in back for s in since) - sum(s in busy for s in since)) <= 2


def test_a_full_queue_answers_busy_at_once(bench: Callable[..., Any]) -> None:
    engine = bench(waiting_per_share=3, waiting=5, rows=1)
    asked = [engine.submit() for _ in range(5)]
    stranger = engine.submit(share="globex")
    engine.steps()
    busy = [s for s in asked if engine.ended(s) and isinstance(engine.ended(s).error, EngineBusy)]
    assert busy == asked[3:]
    assert engine.ended(stranger) is None, "one tenant's full queue refuses another"
    engine.finish()
    assert engine.ended(stranger).reason == "length"


def test_an_urgent_request_overtakes_its_own_tenants_and_nobody_elses(bench: Callable[..., Any]) -> None:
    engine = bench(rows=1)
    engine.submit(share="acme")
    engine.steps()
    patient = [engine.submit(share="acme", tokens=1) for _ in range(3)]
    stranger = engine.submit(share="globex", tokens=1)
    urgent = engine.submit(share="acme", tokens=1, priority=-5)
    engine.finish()
    assert engine.begun()[1:] == [stranger, urgent, *patient]


def test_a_request_that_may_not_wait_longer_is_told_so(bench: Callable[..., Any]) -> None:
    engine = bench(rows=1)
    running = engine.submit(tokens=30)
    hurried, patient = engine.submit(start_by=1.0), engine.submit()
    engine.steps(2)
    assert engine.ended(hurried) is None
    engine.now[0] = 1.5
    engine.steps()
    assert isinstance(engine.ended(hurried).error, EngineBusy)
    engine.finish()
    assert engine.ended(running).reason == engine.ended(patient).reason == "length"
