"""Rows are given back: who waits and had less gets one from who has many, in bounded time, at little cost, in turns."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scheduling import Arrival, Cost, Outcome, Simulation
from inference.engine.yielding import TURN
from inference.errors import EngineBusy

ROOMY: dict[str, Any] = {"rows": 4, "blocks": 1000, "context": 1024}
LONG = 400  # tokens


def flood(engine: Any, count: int = 12, steps: int = 8, **options: Any) -> list[Any]:
    """As many long streams of one tenant, some steps under way."""
    options = {"tokens": LONG, "ignore_eos": True} | options
    streams = [engine.submit(share="greedy", first=50 * n, **options) for n in range(1, count + 1)]
    engine.steps(steps)
    return streams


def answer(sequence: Any) -> list[int]:
    """What the echo model says to a sequence's prompt."""
    offset = 1000 if sequence.digest else 0
    return [(sequence.prompt[-1] + k) % 1000 + 1 + offset for k in range(sequence.sampling.max_tokens)]


def waited(engine: Any, sequence: Any, most: int = 100) -> int:
    """Steps until its first token."""
    for step in range(1, most + 1):
        engine.steps()
        if engine.tokens(sequence):
            return step
    pytest.fail("no row was given back")


def rows_of(engine: Any, share: str) -> int:
    return sum(sequence.share == share for sequence in engine.scheduler.running)


def test_a_tenant_that_holds_every_row_gives_one_back_within_two_steps(bench: Callable[..., Any]) -> None:
    engine = bench(**ROOMY)
    streams = flood(engine)
    asked = engine.submit(share="modest", tokens=4)
    assert waited(engine, asked) <= 2
    engine.finish()
    assert engine.scheduler.yields == 1
    assert all(engine.tokens(sequence) == answer(sequence) for sequence in (*streams, asked))


def test_the_newest_of_the_most_served_share_gives_way(bench: Callable[..., Any]) -> None:
    engine = bench(**ROOMY)
    middle = engine.submit(share="middle", tokens=LONG)
    engine.steps(4)
    first, second, third = flood(engine, 3, steps=30)
    waited(engine, engine.submit(share="modest"))
    assert engine.waiting() == {third}
    assert {first, second, middle} <= set(engine.scheduler.running)


def test_the_least_urgent_of_that_share_gives_way_first(bench: Callable[..., Any]) -> None:
    engine = bench(**ROOMY)
    idle, *_ = flood(engine, 1, priority=5)
    flood(engine, 3)
    waited(engine, engine.submit(share="modest", tokens=LONG))
    assert engine.waiting() == {idle}


def test_whoever_may_only_wait_a_while_takes_no_row(bench: Callable[..., Any]) -> None:
    engine = bench(**ROOMY)
    streams = flood(engine, 4)
    copy = engine.submit(share="shadow", start_by=1.0)
    engine.steps(40)
    assert engine.scheduler.running == streams, "a copy drove a request out"
    asked = engine.submit(share="modest", tokens=4)
    assert waited(engine, asked) <= 2, "a copy stands in a request's way"
    engine.now[0] = 1.5
    engine.finish()
    assert isinstance(engine.ended(copy).error, EngineBusy)


def test_whoever_may_only_wait_a_while_drains_no_slot(bench: Callable[..., Any]) -> None:
    engine = bench(slots=1, rows=4, blocks=2000, context=2048, patience=1.0)
    streams = flood(engine, 2, digest="p")
    copy = engine.submit(digest="x", share="shadow", start_by=1000.0)
    for _ in range(2 * LONG):
        engine.now[0] += 0.05
        engine.steps()
        late = [stream for stream in streams if not engine.ended(stream)]
        assert not late or engine.slots.state("p").state.value == "resident", "a copy drained a slot"
    assert engine.ended(copy).reason == "length", "what is free is not for it"


def test_whoever_may_only_wait_a_while_lets_others_pass_where_memory_is_short(bench: Callable[..., Any]) -> None:
    engine = bench(rows=8, blocks=30, context=120)
    engine.submit(share="greedy", prompt=40, tokens=60)
    engine.steps(8)
    copy = engine.submit(share="shadow", first=500, prompt=100, tokens=4, start_by=1000.0)
    asked = engine.submit(share="modest", tokens=4)
    assert waited(engine, asked) <= 2
    assert not engine.tokens(copy)
    engine.finish()
    assert engine.tokens(copy) == answer(copy)


def test_going_on_costs_a_look_up_and_a_block_at_most(bench: Callable[..., Any]) -> None:
    engine = bench(size=16, **ROOMY)
    streams = flood(engine, 4, prompt=100, steps=60)
    waited(engine, engine.submit(share="modest"))
    engine.finish()
    assert engine.scheduler.yields == 1
    needed = sum(len(sequence.tokens) - 1 for sequence in streams) + 4 + 3
    assert sum(plan.tokens for plan in engine.echo.plans) < needed + 16
    assert all(engine.tokens(sequence) == answer(sequence) for sequence in streams)


@pytest.mark.parametrize(("weight", "fair"), [(1.0, (4, 4)), (3.0, (2, 6)), (1 / 3, (6, 2))])
def test_two_tenants_of_long_streams_divide_the_rows_by_their_weights_and_leave_it_at_that(
    bench: Callable[..., Any], weight: float, fair: tuple[int, int]
) -> None:
    engine = bench(rows=8, blocks=4000, context=4096)
    flood(engine, tokens=3000)
    for _ in range(12):
        engine.submit(share="other", weight=weight, tokens=3000)
    engine.steps(20)
    moved = engine.scheduler.yields
    assert (rows_of(engine, "greedy"), rows_of(engine, "other")) == fair
    engine.steps(300)
    assert (rows_of(engine, "greedy"), rows_of(engine, "other")) == fair
    assert engine.scheduler.yields == moved == fair[1], "rows went to and fro"


@pytest.mark.parametrize(("turn", "looks"), [(LONG, 0), (0, 4)])
def test_however_many_wait_those_who_run_are_put_in_order_once_a_step(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, turn: int, looks: int
) -> None:
    engine = bench(quantum=math.inf, **ROOMY)
    for stream in flood(engine, 4):
        stream.stays_until = turn
    for n in range(50):
        engine.submit(share=f"t{n}")
    yielding, asked = engine.scheduler.yielding, list[int]()
    claims = yielding.claims
    monkeypatch.setattr(yielding, "outranks_any", lambda waiting: True)

    def counted(place: int) -> Any:
        asked.append(place)
        return claims(place)

    monkeypatch.setattr(yielding, "claims", counted)
    engine.steps()
    assert len(asked) == looks


@pytest.mark.parametrize("rows", [1, 3])
def test_where_there_are_more_shares_than_rows_they_take_turns_of_a_least_length(
    bench: Callable[..., Any], rows: int
) -> None:
    engine = bench(rows=rows, blocks=2000, context=1024)
    asked = [engine.submit(share=f"t{n}", tokens=300, first=10 * n) for n in range(1, rows + 2)]
    engine.steps(40)
    assert all(engine.tokens(sequence) for sequence in asked), "a tenant waits for another's end"
    engine.finish()
    assert engine.scheduler.yields <= sum(300 for _ in asked) / TURN + len(asked)
    assert all(engine.tokens(sequence) == answer(sequence) for sequence in asked)


def test_a_share_of_little_weight_gets_its_turn_too(bench: Callable[..., Any]) -> None:
    engine = bench(rows=1, blocks=1000, context=1024)
    heavy = engine.submit(share="heavy", weight=4.0, tokens=900)
    engine.steps(2)
    light = engine.submit(share="light", weight=0.25, tokens=4)
    assert waited(engine, light) < 40
    engine.finish()
    assert len(engine.tokens(heavy)) == 900


def test_a_newcomer_computes_its_long_prompt_before_it_gives_way_in_its_turn(bench: Callable[..., Any]) -> None:
    engine = bench(batch_tokens=32, **ROOMY)
    flood(engine)
    long = engine.submit(share="modest", prompt=300, tokens=LONG)
    assert waited(engine, long) <= 2 + 300 // (32 - 3) + 1, "it lost its row during its prefill"
    engine.steps(TURN - 2)
    assert long in engine.scheduler.running, "its turn was cut short"


def test_another_tenants_prefill_of_many_steps_lets_a_newcomer_pass(bench: Callable[..., Any]) -> None:
    engine = bench(rows=8, blocks=2000, context=2048, batch_tokens=16)
    greedy = [engine.submit(share="greedy", prompt=800, tokens=2) for _ in range(3)]
    engine.steps(3)
    modest = engine.submit(share="modest", tokens=40)
    engine.steps(60)
    begun = engine.tokens(modest)
    late = engine.submit(share="late", tokens=2)
    assert not begun or waited(engine, late) <= 3
    engine.finish()
    assert all(len(engine.tokens(sequence)) == sequence.sampling.max_tokens for sequence in (*greedy, modest, late))


def test_nobody_is_driven_out_for_an_adapter_that_is_not_there(bench: Callable[..., Any]) -> None:
    engine = bench(instant=False, **ROOMY)
    streams = flood(engine, 4)
    cold = engine.submit(digest="x", share="modest")
    engine.steps(10)
    assert engine.scheduler.running == streams
    assert "x" in engine.loads, "its load waits for a row"
    engine.loaded("x")
    assert waited(engine, cold) <= 3
    assert cold.cold


def test_when_every_slot_is_pinned_one_is_given_back_after_a_turn(bench: Callable[..., Any]) -> None:
    engine = bench(slots=2, rows=4, blocks=2000, context=2048, patience=1.0)
    streams = [
        engine.submit(digest=digest, share="greedy", first=first, tokens=1000)
        for digest in "pq"
        for first in (100, 200)
    ]
    engine.steps(4)
    cold = engine.submit(digest="x", share="modest")
    steps = 0
    while not engine.tokens(cold):
        engine.now[0] += 0.05
        engine.steps()
        steps += 1
        assert steps < 4 * TURN, "it waits for another's end"
    assert engine.scheduler.yields <= 2
    for _ in range(4000):
        engine.now[0] += 0.05
        engine.steps()
    assert not engine.scheduler.live
    assert all(engine.tokens(sequence) == answer(sequence) for sequence in (*streams, cold))


def test_a_tenant_that_holds_all_memory_gives_some_back(bench: Callable[..., Any]) -> None:
    engine = bench(rows=8, blocks=30, context=120)
    streams = [engine.submit(share="greedy", first=100 * n, prompt=20, tokens=90) for n in (1, 2, 3, 4)]
    engine.steps(12)
    modest = engine.submit(share="modest", prompt=40, tokens=4)
    assert waited(engine, modest) < 40, "it waits for another's end"
    engine.finish()
    assert all(engine.tokens(sequence) == answer(sequence) for sequence in (*streams, modest))


def test_two_who_are_too_large_for_one_pool_do_not_compute_each_other_again_and_again(
    bench: Callable[..., Any],
) -> None:
    engine = bench(rows=2, blocks=100, context=400, batch_tokens=64)
    large = [engine.submit(share=share, prompt=250, tokens=140, first=n) for n, share in enumerate("ab")]
    engine.finish()
    assert all(engine.tokens(sequence) == answer(sequence) for sequence in large)
    assert sum(plan.tokens for plan in engine.echo.plans) < 1.7 * sum(len(sequence.tokens) for sequence in large)


def test_who_gave_way_never_fails_because_it_waits_again(bench: Callable[..., Any]) -> None:
    engine = bench(**ROOMY)
    streams = flood(engine, 4, start_by=1.0)
    asked = engine.submit(share="modest", tokens=40)
    waited(engine, asked)
    hurried = engine.submit(share="greedy", start_by=1.0)
    engine.now[0] = 1.5
    engine.finish()
    assert engine.scheduler.yields
    assert isinstance(engine.ended(hurried).error, EngineBusy)
    assert all(engine.tokens(sequence) == answer(sequence) for sequence in streams)


def test_who_gave_way_and_leaves_then_holds_nothing(bench: Callable[..., Any]) -> None:
    engine = bench(**ROOMY)
    streams = flood(engine, 4, digest="x")
    waited(engine, engine.submit(share="modest", tokens=40))
    (gave_way,) = engine.waiting()
    engine.engine.cancel(gave_way)
    engine.finish()
    assert not engine.ended(gave_way)
    assert all(engine.ended(sequence) for sequence in streams if sequence is not gave_way)
    assert engine.scheduler.blocks.leased == 0


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), blocks=st.integers(17, 200), rows=st.integers(1, 4), slots=st.integers(1, 3))
def test_whatever_comes_every_answer_is_what_it_would_be_alone(
    bench: Callable[..., Any], seed: int, blocks: int, rows: int, slots: int
) -> None:
    draw = random.Random(seed)
    engine = bench(blocks=blocks, rows=rows, slots=slots, quantum=draw.choice([0.1, 1.0]), patience=0.3)
    asked, gone = [], set()
    for _ in range(40):
        place = {"weight": draw.choice([0.5, 1.0, 4.0]), "priority": draw.randint(-1, 1), "first": draw.randint(1, 200)}
        digest = draw.choice(["", "p", "q", "r"])
        asked.append(engine.submit(draw.randint(1, 30), digest, draw.choice("abc"), draw.randint(1, 30), **place))
        if draw.random() < 0.1:
            gone.add(leaver := draw.choice(asked))
            engine.engine.cancel(leaver)
        for _ in range(draw.randint(0, 4)):
            engine.now[0] += 0.1
            engine.steps()
    for _ in range(8000):
        engine.now[0] += 0.1
        if not engine.engine.step() and not engine.scheduler.live:
            break
    assert not engine.scheduler.live
    assert all(engine.tokens(sequence) == answer(sequence) for sequence in asked if sequence not in gone)
    assert engine.scheduler.blocks.leased == 0


ALONE = [Arrival(30.0 + 15 * n, "modest", "modest/a", 64, 8) for n in range(12)]
DRAW = random.Random(5)
FLOOD = [Arrival(0.0, "greedy", "greedy/a", DRAW.randint(8, 128), DRAW.randint(800, 1000)) for _ in range(30)]


def simulated(arrivals: list[Arrival], **options: Any) -> Outcome:
    outcome = Simulation(Cost(), fair=True, rows=16, **options).run(arrivals)
    assert outcome.finished == len(arrivals)
    return outcome


@pytest.fixture(scope="module")
def beside() -> Outcome:
    return simulated(FLOOD + ALONE)


def test_beside_a_flood_the_first_token_comes_three_steps_later_than_alone(beside: Outcome) -> None:
    assert max(beside.steps["modest"]) <= max(simulated(ALONE).steps["modest"]) + 3


def test_and_the_whole_loses_nothing_of_its_throughput(beside: Outcome) -> None:
    flooded = simulated(FLOOD)
    assert beside.tokens / beside.seconds >= 0.97 * flooded.tokens / flooded.seconds


def test_a_tenant_that_waits_falls_behind_those_who_run_by_a_bounded_amount(beside: Outcome) -> None:
    assert beside.yields > 0
    assert beside.arrears <= beside.arrears_bound


def test_without_giving_back_it_would_fall_behind_by_more(beside: Outcome) -> None:
    never = simulated(FLOOD + ALONE, quantum=math.inf)
    assert never.arrears > beside.arrears_bound
    assert max(never.steps["modest"]) > 10 * max(beside.steps["modest"])
