"""What may happen to a slot, and what never may: a pinned one is not emptied, a load is not lost."""

import pytest

from inference.errors import AdapterMissing, AdapterUnavailable, PinsFull
from inference.lora.slots import State
from tests.inference.lora.bench import Bench


def test_an_adapter_is_pinned_only_once_it_is_resident() -> None:
    bench = Bench()
    bench.pool.want("a")
    assert bench.pool.pin("a") is None
    bench.loads["a"].set_result(bench)
    bench.pool.poll()
    assert bench.pool.pin("a") == 0


def test_wanting_twice_loads_once() -> None:
    bench = Bench()
    bench.pool.want("a")
    bench.pool.want("a")
    assert bench.pool.tally.misses == 1


def test_the_least_recently_used_unpinned_adapter_makes_room() -> None:
    bench = Bench(slots=3)
    bench.resident("a", "b", "c")
    for digest in "abc":
        slot = bench.pinned(digest)
        bench.now += 1
        if digest != "a":
            bench.pool.unpin(slot)
    bench.pool.want("d")
    assert bench.state("b") is State.RESIDENT, "it was emptied before it had to be"
    bench.loaded("d")
    assert bench.state("b") is None
    assert bench.state("a") is State.RESIDENT
    assert bench.state("c") is State.RESIDENT


def test_a_just_loaded_adapter_is_kept_for_who_asked_for_it() -> None:
    bench = Bench(slots=1)
    bench.resident("a")
    bench.pool.want("b")
    bench.loaded("b")
    assert bench.state("a") is State.RESIDENT
    bench.now += 11
    bench.pool.poll()
    assert bench.state("b") is State.RESIDENT


def test_an_adapter_is_not_kept_for_who_asked_for_it_and_left() -> None:
    bench = Bench(slots=1)
    bench.resident("a")
    bench.pool.forget("a")
    bench.pool.want("b")
    bench.loaded("b")
    assert bench.state("b") is State.RESIDENT


def test_a_pinned_adapter_is_not_emptied_by_eviction_but_after_its_last_sequence() -> None:
    bench = Bench()
    bench.resident("a")
    slot = bench.pinned("a")
    bench.pool.evict("a")
    assert bench.tables[slot]
    assert bench.pool.pin("a") is None, "a draining slot took a new sequence"
    bench.pool.unpin(slot)
    assert slot not in bench.tables
    assert bench.state("a") is None
    bench.pool.check()


def test_an_eviction_during_the_load_takes_effect_when_it_is_done() -> None:
    bench = Bench()
    bench.pool.want("a")
    bench.pool.evict("a")
    bench.loaded("a")
    assert bench.state("a") is None
    assert not bench.tables


def test_after_its_patience_a_starving_adapter_gets_the_slot_with_the_least_left() -> None:
    bench = Bench(slots=2, patience=1.0)
    bench.resident("a", "b")
    slots = {digest: bench.pinned(digest) for digest in "ab"}
    left = {slots["a"]: 50, slots["b"]: 5}
    bench.pool.want("c", left.__getitem__)
    bench.loaded("c")
    bench.pool.want("c", left.__getitem__)
    assert bench.state("b") is State.RESIDENT
    bench.now += 1.5
    bench.pool.want("c", left.__getitem__)
    assert bench.state("b") is State.DRAINING
    bench.pool.unpin(slots["b"])
    assert bench.state("c") is State.LOADING
    bench.pool.check()


def test_nobody_is_drained_for_an_adapter_that_has_not_come_yet() -> None:
    bench = Bench(slots=1, patience=0.0)
    bench.resident("a")
    bench.pinned("a")
    bench.pool.want("b", lambda _: 1)
    bench.now += 30
    bench.pool.want("b", lambda _: 1)
    assert bench.state("a") is State.RESIDENT
    assert bench.pool.pin("a") == 0


def test_a_drained_slot_is_kept_for_its_heir() -> None:
    bench = Bench(slots=1, patience=0.0)
    bench.resident("a")
    slot = bench.pinned("a")
    for digest in "bc":
        bench.pool.want(digest)
        bench.loaded(digest)
    bench.pool.want("c", lambda _: 1)
    bench.pool.unpin(slot)
    bench.pool.poll()
    assert bench.state("c") is State.RESIDENT
    assert bench.state("b") is None


def test_who_asked_and_went_away_is_not_waited_for() -> None:
    bench = Bench(slots=1)
    bench.resident("a")
    bench.pinned("a")
    bench.pool.bring("b").cancel()
    bench.loaded("b")
    assert bench.pool.loading == 0


def test_nobody_is_drained_for_an_adapter_that_nobody_waits_for_any_more() -> None:
    bench = Bench(slots=1, patience=0.0)
    bench.resident("a")
    bench.pool.pin("a")
    bench.pool.want("b")
    bench.loaded("b")
    bench.pool.want("b", lambda _: 1)
    assert bench.state("a") is State.DRAINING
    bench.pool.forget("b")
    assert bench.pool.pin("a") == 0


def test_a_failed_load_frees_its_slot_and_says_why() -> None:
    bench = Bench()
    bench.pool.want("a")
    bench.pool.want("b")
    bench.loads["a"].set_exception(AdapterMissing("gone"))
    bench.loads["b"].set_exception(ValueError("odd"))
    failures = dict(bench.pool.poll())
    assert isinstance(failures["a"], AdapterMissing)
    assert isinstance(failures["b"], AdapterUnavailable)
    assert list(bench.pool.occupied()) == []


def test_bringing_an_adapter_is_answered_when_it_is_there() -> None:
    bench = Bench()
    future = bench.pool.bring("a")
    assert not future.done()
    bench.loads["a"].set_result(bench)
    bench.pool.poll()
    assert future.done()
    assert bench.pool.bring("a").done()
    broken = bench.pool.bring("b")
    bench.loads["b"].set_exception(AdapterMissing("gone"))
    bench.pool.poll()
    with pytest.raises(AdapterMissing):
        broken.result()


def test_a_held_adapter_makes_no_room_and_is_not_drained_until_it_is_let_go() -> None:
    bench = Bench(slots=2, patience=0.0)
    bench.resident("a", "b")
    bench.pool.bring("a", hold=True)
    bench.pinned("a")
    bench.pinned("b")
    bench.now += 60
    for digest in "cd":
        bench.pool.want(digest)
        bench.loaded(digest)
    bench.pool.want("c", {0: 1, 1: 99}.__getitem__)
    assert bench.state("a") is State.RESIDENT
    assert bench.state("b") is State.DRAINING
    bench.pool.let_go("a")
    bench.pool.want("d", {0: 1, 1: 99}.__getitem__)
    assert bench.state("a") is State.DRAINING


def test_one_slot_is_never_held() -> None:
    bench = Bench(slots=2)
    bench.pool.hold("a")
    bench.pool.hold("a")
    with pytest.raises(PinsFull):
        bench.pool.bring("b", hold=True)
    bench.pool.evict("a")
    bench.pool.hold("b")


def test_an_adapter_that_cannot_be_loaded_is_not_held() -> None:
    bench = Bench(slots=2)
    bench.pool.bring("a", hold=True)
    bench.loads["a"].set_exception(AdapterMissing("gone"))
    bench.pool.poll()
    assert bench.pool.held == set()


def test_bringing_waits_for_room() -> None:
    bench = Bench(slots=1)
    bench.resident("a")
    slot = bench.pinned("a")
    future = bench.pool.bring("b")
    bench.loaded("b")
    assert not future.done()
    bench.pool.unpin(slot)
    bench.pool.poll()
    assert future.done()


def test_unpinning_more_often_than_pinning_is_a_bug() -> None:
    bench = Bench()
    bench.resident("a")
    with pytest.raises(AssertionError):
        bench.pool.unpin(0)
