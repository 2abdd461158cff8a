"""Who may begin to load, who is let go of, and what becomes of preloads, pins and unloads that cross each other."""

from concurrent.futures import Future
from typing import Any

import pytest

from inference.lora.arrivals import AHEAD, LATE
from inference.lora.slots import GRACE, State
from tests.inference.lora.bench import Bench


def numbered(count: int) -> list[str]:
    return [f"x{number}" for number in range(count)]


def test_of_five_hundred_wanted_at_once_only_as_many_load_as_find_slots_soon_and_all_come_in_the_end() -> None:
    bench = Bench(slots=2)
    waiting = numbered(500)
    for _ in range(1000):
        for digest in waiting:
            bench.pool.want(digest)
        assert len(bench.pool.coming) <= 2 + AHEAD
        under_way = [load for load in bench.loads.values() if not load.done()]
        assert len(under_way) <= 2 + AHEAD
        for load in under_way:
            load.set_result(bench)
        bench.pool.poll()
        bench.pool.check()
        for slot in list(bench.pool.occupied()):
            bench.pool.poll()
            bench.pool.unpin(bench.pinned(slot.digest))
            waiting.remove(slot.digest)
        bench.now += 0.1
        if not waiting:
            break
    assert (waiting, bench.pool.loading) == ([], 0)


def test_while_all_slots_are_taken_only_a_few_adapters_are_brought_to_the_host() -> None:
    bench = Bench(slots=1)
    bench.resident("a")
    bench.pinned("a")
    bench.pool.poll()
    for digest in numbered(40):
        bench.pool.want(digest)
    assert list(bench.loads) == ["a", *numbered(AHEAD)]
    for digest in numbered(AHEAD):
        bench.loaded(digest)
    for digest in numbered(40):
        bench.pool.want(digest)
    assert len(bench.loads) == 1 + AHEAD


def test_what_comes_when_the_slots_have_been_taken_is_let_go_of_but_for_who_waits_longest() -> None:
    bench = Bench(slots=8)
    bench.resident(*"abcdefgh")
    bench.now += GRACE
    bench.pool.poll()
    wanted = numbered(8 + AHEAD)
    for digest in wanted:
        bench.pool.want(digest)
        bench.now += 0.01
    slots = [bench.pinned(digest) for digest in "abcdefgh"]
    for digest in reversed(wanted):
        bench.loaded(digest)
    assert bench.pool.coming == tuple(wanted[:AHEAD])
    for slot in slots:
        bench.pool.unpin(slot)
    bench.pool.poll()
    first = dict(bench.loads)
    for digest in wanted:
        bench.pool.want(digest)
    begun = [digest for digest in wanted if bench.loads[digest] is not first[digest]]
    assert begun == wanted[AHEAD:], "who was let go of is not brought again"


def test_who_a_slot_is_drained_for_is_not_let_go_of() -> None:
    bench = Bench(slots=1, patience=0.0)
    bench.resident("a")
    bench.pinned("a")
    bench.pool.poll()
    for digest in numbered(AHEAD):
        bench.pool.want(digest)
    last = numbered(AHEAD)[-1]
    bench.loaded(last)
    bench.pool.want(last, lambda _: 1)
    bench.now += LATE + 1
    bench.pool.poll()
    for digest in ("p", "q", "r"):
        bench.pool.want(digest)
    for digest in [*numbered(AHEAD - 1), "p", "q", "r"]:
        bench.loaded(digest)
    assert last in bench.pool.coming
    assert len(bench.pool.coming) == 1 + AHEAD


def test_a_load_that_hangs_keeps_others_from_beginning_only_for_a_while() -> None:
    bench = Bench(slots=1)
    for digest in numbered(1 + AHEAD):
        bench.pool.want(digest)
    bench.pool.want("fine")
    assert "fine" not in bench.loads
    bench.now += LATE + 1
    bench.pool.poll()
    bench.pool.want("fine")
    bench.loaded("fine")
    assert bench.state("fine") is not None


def test_preloads_without_end_leave_half_of_the_loads_to_who_waits() -> None:
    bench = Bench(slots=2)
    for digest in numbered(100):
        bench.pool.bring(digest)
    bench.pool.poll()
    assert len(bench.loads) == (2 + AHEAD) // 2
    bench.pool.want("asked for")
    assert "asked for" in bench.loads


def test_an_unload_holds_though_the_slot_was_draining_for_somebody_who_left() -> None:
    bench = Bench(slots=1, patience=0.0)
    bench.resident("x")
    slot = bench.pinned("x")
    bench.pool.want("y")
    bench.loaded("y")
    bench.pool.want("y", lambda _: 1)
    assert bench.state("x") is State.DRAINING
    bench.pool.evict("x")
    bench.pool.forget("y")
    bench.pool.check()
    assert bench.pool.pin("x") is None, "the unload was forgotten"
    bench.pool.unpin(slot)
    assert bench.state("x") is None
    assert not bench.tables


def test_a_preload_does_not_starve_behind_slots_that_stay_pinned() -> None:
    bench = Bench(slots=2, patience=1.0)
    bench.resident("a", "b")
    slots = {digest: bench.pinned(digest) for digest in "ab"}
    left = {slots["a"]: 50, slots["b"]: 5}
    brought = bench.pool.bring("c")
    bench.loaded("c")
    bench.now += 1.5
    bench.pool.poll(left.__getitem__)
    assert bench.state("b") is State.DRAINING
    bench.pool.unpin(slots["b"])
    bench.pool.poll(left.__getitem__)
    assert brought.done()


def test_what_sequences_wait_for_gets_slots_before_what_is_only_preloaded() -> None:
    bench = Bench(slots=1, patience=1.0)
    bench.resident("a")
    slot = bench.pinned("a")
    brought = bench.pool.bring("early")
    bench.loaded("early")
    bench.now += 2
    bench.pool.want("b")
    bench.loaded("b")
    bench.pool.poll(lambda _: 1)
    assert bench.state("a") is State.RESIDENT
    bench.now += 1.5
    bench.pool.want("b", lambda _: 1)
    bench.pool.unpin(slot)
    assert bench.state("b") is State.LOADING
    bench.pool.poll()
    slot = bench.pinned("b")
    bench.pool.poll(lambda _: 1)
    bench.pool.unpin(slot)
    bench.pool.poll()
    assert brought.done()


def test_a_preload_of_an_adapter_whose_drain_is_called_off_is_answered() -> None:
    bench = Bench(slots=2, patience=0.0)
    bench.resident("x", "z")
    bench.pinned("x")
    bench.pinned("z")
    bench.pool.want("y")
    bench.loaded("y")
    bench.pool.want("y", lambda slot: slot)
    assert bench.state("x") is State.DRAINING
    brought = bench.pool.bring("x", hold=True)
    bench.pool.poll()
    assert not brought.done()
    bench.pool.forget("y")
    bench.pool.poll()
    assert brought.done()
    assert bench.pool.held == {"x"}


@pytest.mark.parametrize("when", ["before it came", "when it came"])
def test_who_asked_for_a_pin_and_went_away_leaves_none(when: str) -> None:
    bench = Bench(slots=3)
    bench.pool.bring("a", hold=True)
    for digest in "ab":
        brought = bench.pool.bring(digest, hold=True)
        if when == "when it came":
            bench.loads[digest].set_result(bench)
        brought.cancel()
        bench.pool.poll()
    assert bench.pool.held == {"a"}
    bench.pool.bring("c", hold=True)


def test_who_goes_away_while_the_slot_is_filled_leaves_no_pin() -> None:
    bench = Bench(slots=3, pages=4)
    assert bench.arena is not None
    copy: Future[Any] = Future()
    bench.arena.fill = lambda lease, weights: copy  # type: ignore[method-assign]
    brought = bench.pool.bring("a", hold=True)
    bench.loaded("a")
    brought.cancel()
    bench.pool.poll()
    bench.pool.check()
    assert bench.pool.held == set()
    assert bench.state("a") is State.LOADING


def test_a_preload_that_is_called_off_leaves_the_load_to_the_sequences_that_wait_for_it() -> None:
    bench = Bench(slots=1, patience=1.0)
    bench.resident("a")
    bench.pinned("a")
    brought = bench.pool.bring("b")
    bench.pool.want("b", lambda _: 1)
    brought.cancel()
    bench.pool.poll()
    assert bench.pool.coming == ("b",)
    bench.loaded("b")
    bench.now += 1.5
    bench.pool.want("b", lambda _: 1)
    assert bench.state("a") is State.DRAINING, "it waits from the start again"
    bench.pool.forget("b")
    assert bench.pool.loading == 0
