"""Requests whose adapters come, wait for slots and are unloaded below them: nobody starves and nothing hangs."""

import statistics
from collections.abc import Callable
from typing import Any

import pytest

from inference.errors import AdapterUnavailable


def test_the_batch_does_not_wait_for_a_load(bench: Callable[..., Any]) -> None:
    engine = bench(instant=False)
    cold, warm = engine.submit(digest="x"), engine.submit()
    engine.steps(5)
    assert engine.ended(warm)
    assert not engine.tokens(cold)
    engine.loaded("x")
    engine.finish()
    assert len(engine.tokens(cold)) == 4


def test_a_failed_load_fails_the_requests_that_wait_for_it_and_no_other(bench: Callable[..., Any]) -> None:
    engine = bench(instant=False)
    broken, waiting, fine = engine.submit(digest="x"), engine.submit(digest="x", share="b"), engine.submit(digest="y")
    engine.steps()
    engine.loads.pop("x").set_exception(OSError("disk"))
    engine.loaded("y")
    engine.finish()
    assert isinstance(engine.ended(broken).error, AdapterUnavailable)
    assert isinstance(engine.ended(waiting).error, AdapterUnavailable)
    assert engine.ended(fine).reason == "length"
    again = engine.submit(digest="x")
    engine.steps()
    engine.loaded("x")
    engine.finish()
    assert engine.ended(again).reason == "length"


def test_one_more_adapter_than_slots_is_served_in_turn(bench: Callable[..., Any]) -> None:
    engine = bench(slots=2)
    asked = [engine.submit(digest=d, share=d) for _ in range(4) for d in "xyz"]
    engine.finish()
    assert all(engine.ended(sequence).reason == "length" for sequence in asked)


def test_a_waiting_adapter_does_not_starve_behind_resident_ones(bench: Callable[..., Any]) -> None:
    engine = bench(slots=1, rows=4, patience=1.0)
    for _ in range(200):
        engine.submit(digest="popular", tokens=4)
    engine.steps(2)
    cold = engine.submit(digest="cold", share="globex")
    for _ in range(40):
        engine.now[0] += 0.1
        engine.steps()
    assert engine.ended(cold), "the cold adapter starved"


def test_one_more_adapter_than_slots_costs_some_steps_and_not_seconds(bench: Callable[..., Any]) -> None:
    """Other engines: from 40 ms to the first token to 6 s. A load takes three steps."""

    def median_wait(adapters: int) -> float:
        engine = bench(slots=16, rows=32, batch_tokens=64, blocks=400, instant=False)
        asked: dict[Any, int] = {}
        begun: dict[Any, int] = {}
        due: dict[str, int] = {}
        for step in range(500):
            for digest in engine.loads:
                due.setdefault(digest, step + 2)
            for digest in [digest for digest, at in due.items() if at <= step]:
                engine.loaded(digest)
                del due[digest]
            if step % 2 == 0:
                asked[engine.submit(digest=f"x{step // 2 % adapters}", tokens=12)] = step
            engine.now[0] += 0.05
            engine.steps()
            begun |= {sequence: step for sequence in engine.begun() if sequence not in begun}
        return statistics.median(begun[sequence] - at for sequence, at in asked.items() if sequence in begun)

    assert median_wait(17) <= median_wait(16) + 4


def test_unloading_below_a_request_with_several_answers_waits_for_the_last_and_hangs_nobody(
    bench: Callable[..., Any],
) -> None:
    engine = bench()
    answers = [engine.submit(digest="x", tokens=8 + 4 * n) for n in range(4)]
    engine.steps(2)
    engine.engine.ask(lambda: engine.slots.evict("x"))
    late = engine.submit(digest="x")
    engine.finish()
    assert all(engine.ended(sequence).reason == "length" for sequence in [*answers, late])
    assert engine.begun().index(late) == len(answers)
    assert engine.slots.tally.misses == 2


def test_answers_that_are_left_one_by_one_below_an_unload_free_the_slot_with_the_last(
    bench: Callable[..., Any],
) -> None:
    engine = bench()
    answers = [engine.submit(digest="x", tokens=40) for _ in range(3)]
    engine.steps(2)
    engine.engine.ask(lambda: engine.slots.evict("x"))
    for sequence in answers:
        assert engine.slots.state("x") is not None
        engine.engine.cancel(sequence)
        engine.steps()
    assert engine.slots.state("x") is None
    after = engine.submit(digest="x")
    engine.finish()
    assert engine.ended(after).reason == "length"


def test_who_leaves_while_its_adapter_comes_keeps_no_slot_from_the_next(bench: Callable[..., Any]) -> None:
    engine = bench(slots=1, rows=1, instant=False)
    left = engine.submit(digest="x", tokens=8)
    engine.steps()
    engine.submit(tokens=3)
    engine.steps()
    engine.loaded("x")
    engine.steps()
    assert engine.slots.state("x") is not None
    engine.engine.cancel(left)
    after = engine.submit(digest="y")
    for _ in range(10):
        engine.steps()
        if "y" in engine.loads:
            engine.loaded("y")
    assert engine.ended(after), "it waits though the slot is idle"


def test_as_many_adapters_as_slots_and_the_base_share_a_step_while_another_waits(bench: Callable[..., Any]) -> None:
    """Other engines: N adapters and the base at once crash the scheduler."""
    engine = bench(slots=3)
    asked = [engine.submit(digest=digest, share=digest, tokens=12) for digest in ("x", "", "y", "z", "w")]
    engine.finish()
    assert all(engine.ended(sequence).reason == "length" for sequence in asked)
    together = [{row.sequence.digest for row in plan.rows} for plan in engine.echo.plans]
    assert {"x", "", "y", "z"} in together
    assert all(len(digests - {""}) <= 3 for digests in together)


@pytest.mark.parametrize("share", ["acme", "globex"], ids=["of the same tenant", "of another tenant"])
def test_adapters_do_not_starve_behind_resident_ones_that_are_asked_for_without_end(
    bench: Callable[..., Any], share: str
) -> None:
    engine = bench(slots=2, rows=4, patience=1.0, blocks=200)
    cold = []
    for step in range(200):
        engine.submit(digest="pq"[step % 2], share="acme", tokens=6)
        if step == 20:
            cold = [engine.submit(digest=digest, share=share) for digest in ("rare", "rarer")]
        engine.now[0] += 0.1
        engine.steps()
    assert all(engine.ended(sequence) for sequence in cold), "a cold adapter starved"


def test_a_request_under_way_keeps_its_adapter_whatever_is_loaded_meanwhile(bench: Callable[..., Any]) -> None:
    """Other engines: a hot load into its slot answers it with another tenant's adapter. The echo asserts the slot."""
    engine = bench(slots=1, patience=0.1)
    asked = engine.submit(digest="x", tokens=30)
    engine.steps(2)
    for digest in ("y", "z"):
        engine.submit(digest=digest, share=digest)
        engine.engine.ask(lambda: engine.slots.evict("x"))
    for _ in range(20):
        engine.now[0] += 0.1
        engine.steps()
        assert engine.echo.installed == {0: "x"}
    engine.finish()
    assert len(engine.tokens(asked)) == 30
