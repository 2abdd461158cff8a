"""Whose turn it is, who gives way when memory is short, and who has waited too long."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.scheduling import Arrival, Cost, Outcome, Simulation
from inference.client import Sampling
from inference.engine.fairness import FairQueue
from inference.engine.sequence import Sequence
from inference.errors import EngineBusy


def test_a_tenant_that_asks_for_less_than_its_due_saves_up_no_service(bench: Callable[..., Any]) -> None:
    """One request of it always runs, so it never idles; then it asks for as much as the others."""
    engine = bench(rows=4, blocks=256)
    busy = [engine.submit(share="busy") for _ in range(200)]
    modest = engine.submit(share="modest", tokens=8)
    for _ in range(100):
        if modest.left <= 2:
            modest = engine.submit(share="modest", tokens=8)
        engine.steps()
    burst = [engine.submit(share="modest") for _ in range(60)]
    before = len(engine.begun())
    engine.steps(40)
    since = engine.begun()[before:]
    assert len(since) > 20
    assert abs(sum(s in burst for s in since) - sum(s in busy for s in since)) <= 4


def test_who_comes_to_an_empty_queue_is_lifted_to_the_share_that_left_it_last() -> None:
    queue = FairQueue()
    little, much, late = (Sequence(n, [1], Sampling(1), share=share) for n, share in enumerate(("a", "b", "c")))
    for sequence, service in ((little, 100.0), (much, 500.0)):
        queue.join(sequence)
        queue.admit(sequence)
        queue.charge(sequence, service)
    queue.join(late)
    assert queue.served("c") == queue.served("b") > queue.served("a")


def preempted(engine: Any) -> set[Any]:
    return {s for s in engine.scheduler.live if s.begun and s not in engine.scheduler.running}


def test_the_least_entitled_tenant_gives_way_when_memory_is_short(bench: Callable[..., Any]) -> None:
    engine = bench(blocks=12, rows=4)
    greedy = [engine.submit(share="greedy", tokens=16, first=100 * n) for n in range(1, 4)]
    engine.steps(3)
    modest = engine.submit(share="modest", tokens=16, first=400)
    gave_way = set()
    while engine.scheduler.live:
        engine.steps()
        gave_way |= preempted(engine)
    assert gave_way, "memory was never short"
    assert gave_way <= set(greedy[1:]), "a tenant that had less, or the first admitted, gave way"
    for sequence in (*greedy, modest):
        assert engine.tokens(sequence) == [sequence.prompt[-1] + 1 + k for k in range(16)]


def test_within_a_tenant_the_least_urgent_gives_way(bench: Callable[..., Any]) -> None:
    engine = bench(blocks=10, rows=3)
    first, later = engine.submit(tokens=16), engine.submit(tokens=16, priority=5)
    engine.steps(2)
    urgent = engine.submit(tokens=16, priority=-5)
    gave_way = set()
    while engine.scheduler.live:
        engine.steps()
        gave_way |= preempted(engine)
    assert gave_way == {later}
    assert all(len(engine.tokens(sequence)) == 16 for sequence in (first, later, urgent))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), blocks=st.integers(15, 24))
def test_however_short_memory_is_the_first_admitted_goes_on_and_all_end(
    bench: Callable[..., Any], seed: int, blocks: int
) -> None:
    """15 blocks are what the longest request needs for itself."""
    draw = random.Random(seed)
    engine = bench(blocks=blocks, rows=6, quantum=math.inf)
    asked = []
    for _ in range(24):
        place = {"weight": draw.choice([0.5, 1.0, 4.0]), "priority": draw.randint(-1, 1)}
        prompt, tokens = draw.randint(1, 30), draw.randint(1, 30)
        asked.append(engine.submit(prompt, draw.choice(["", "x"]), draw.choice("abc"), tokens, **place))
        engine.steps(draw.randint(0, 3))
        first = engine.scheduler.running[:1]
        engine.steps()
        assert all(s in engine.scheduler.running[:1] or engine.ended(s) for s in first), "the first admitted gave way"
    engine.finish(2000)
    assert all(len(engine.tokens(sequence)) == sequence.sampling.max_tokens for sequence in asked)


def test_who_may_not_wait_longer_is_told_so_wherever_it_stands_in_a_line_that_does_not_move(
    bench: Callable[..., Any],
) -> None:
    engine = bench(rows=1, quantum=math.inf)
    running, patient = engine.submit(tokens=30), engine.submit()
    hurried = engine.submit(start_by=1.0)
    stranger = engine.submit(share="globex", start_by=1.2)
    gone = engine.submit(share="globex", start_by=1.1)
    engine.steps(2)
    engine.engine.cancel(gone)
    engine.now[0] = 1.5
    engine.steps()
    assert isinstance(engine.ended(hurried).error, EngineBusy)
    assert isinstance(engine.ended(stranger).error, EngineBusy)
    assert engine.ended(gone) is engine.ended(patient) is None
    engine.finish()
    assert engine.ended(running).reason == engine.ended(patient).reason == "length"


def test_who_began_in_time_may_take_as_long_as_it_needs(bench: Callable[..., Any]) -> None:
    engine = bench(blocks=8, rows=2)
    asked = [engine.submit(tokens=16, start_by=1.0) for _ in range(2)]
    engine.steps(2)
    engine.now[0] = 1.5
    engine.finish()
    assert engine.scheduler.preemptions > 0, "none had to wait again"
    assert [engine.ended(sequence).reason for sequence in asked] == ["length", "length"]


WEIGHTS = {"light": 1.0, "heavy": 4.0, "middle": 2.0}
ROOM = 1024  # tokens that fit in the batch


@pytest.fixture(scope="module")
def crowd() -> list[Arrival]:
    """Three backlogged tenants, one after another, and a fourth that seldom waits until it asks for much."""
    draw = random.Random(4)
    waves = [
        Arrival(float(wave), tenant, f"{tenant}/a{n % 3}", draw.randint(8, 256), draw.randint(8, 64), WEIGHTS[tenant])
        for wave, tenant in enumerate(WEIGHTS)
        for n in range(90)
    ]
    steady = [Arrival(2.0 * n, "steady", "steady/a", 16, 16) for n in range(150)]
    burst = [Arrival(60.0, "steady", "steady/a", 64, 64) for _ in range(60)]
    return sorted([*waves, *steady, *burst], key=lambda arrival: arrival.at)


def simulated(crowd: list[Arrival], *, fair: bool) -> Outcome:
    outcome = Simulation(Cost(), fair=fair, rows=8, tokens=ROOM).run(crowd)
    assert outcome.finished == len(crowd)
    return outcome


def test_service_between_backlogged_tenants_stays_within_the_papers_bound(crowd: list[Arrival]) -> None:
    outcome = simulated(crowd, fair=True)
    assert outcome.gap <= outcome.bound


def test_first_come_first_served_would_break_that_bound(crowd: list[Arrival]) -> None:
    outcome = simulated(crowd, fair=False)
    assert outcome.gap > outcome.bound
