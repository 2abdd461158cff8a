"""Adapters of real sizes in the slots' memory: pages are conserved, and room is made for nobody in vain."""

from concurrent.futures import Future
from typing import Any

import pytest

from inference.errors import AdapterUnavailable, PinsFull
from inference.lora.arena import PAGE
from inference.lora.slots import State
from tests.inference.lora.bench import Bench, sized


def test_an_eviction_during_the_copy_takes_effect_when_it_is_done() -> None:
    bench = Bench(pages=4)
    assert bench.arena is not None
    copies: list[Future[Any]] = [Future()]
    bench.arena.fill = lambda lease, weights: copies[0]  # type: ignore[method-assign]
    bench.pool.want("a")
    bench.loaded("a")
    assert bench.state("a") is State.LOADING
    bench.pool.evict("a")
    bench.pool.check()
    copies[0].set_result(sized(PAGE))
    bench.pool.poll()
    assert bench.state("a") is None
    assert not bench.tables
    assert bench.arena.free == bench.arena.total


@pytest.mark.parametrize("again", [False, True], ids=["left", "asked again"])
def test_an_adapter_is_kept_if_somebody_waits_for_it_when_it_has_been_filled(again: bool) -> None:
    bench = Bench(slots=1, pages=4)
    assert bench.arena is not None
    fill, copy = bench.arena.fill, Future[Any]()
    bench.arena.fill = lambda lease, weights: copy  # type: ignore[method-assign]
    bench.pool.want("a")
    bench.loaded("a")
    bench.pool.forget("a")
    if again:
        bench.pool.want("a")
    copy.set_result(sized(PAGE))
    bench.pool.poll()
    assert bench.state("a") is State.RESIDENT
    bench.arena.fill = fill  # type: ignore[method-assign]
    bench.pool.want("b")
    bench.loaded("b")
    assert bench.state("b") is (None if again else State.RESIDENT)


def test_slots_hold_real_ranks_and_the_law_of_pages() -> None:
    bench = Bench(slots=8, pages=16)
    bench.resident("wide", pages=10)
    bench.resident("a", "b", "c", pages=2)
    assert (bench.pool.room.free, bench.pool.room.leased) == (0, 16)
    bench.pool.evict("wide")
    bench.pool.check()
    assert bench.pool.room.free == 10


def test_memory_is_made_by_the_least_recently_used_and_by_nobody_in_vain() -> None:
    bench = Bench(slots=8, pages=8)
    bench.resident("a", "b", "c", "d", pages=2)
    bench.pinned("c")
    bench.now += 60
    bench.pool.want("big")
    bench.loaded("big", pages=7)
    assert all(bench.state(digest) is State.RESIDENT for digest in "abcd"), "it would not have fitted all the same"
    bench.pool.want("e")
    bench.loaded("e", pages=4)
    assert bench.state("e") is State.RESIDENT
    assert [bench.state(digest) for digest in "ab"] == [None, None]
    assert bench.state("d") is State.RESIDENT


def test_nobody_is_emptied_for_a_matrix_that_would_find_no_run_all_the_same() -> None:
    bench = Bench(slots=4, pages=9)
    bench.resident("a", "b", "c", pages=3)
    bench.pinned("b")
    bench.now += 60
    bench.pool.want("big")
    bench.loaded("big", pages=4, whole=True)
    assert all(bench.state(digest) is State.RESIDENT for digest in "abc")
    bench.pool.want("d")
    bench.loaded("d", pages=3, whole=True)
    assert (bench.state("a"), bench.state("c"), bench.state("d")) == (None, State.RESIDENT, State.RESIDENT)


def test_memory_is_drained_for_a_starving_adapter_slot_by_slot() -> None:
    bench = Bench(slots=4, patience=1.0, pages=8)
    bench.resident("a", "b", pages=4)
    slots = [bench.pinned("a"), bench.pinned("b")]
    bench.pool.want("big")
    bench.loaded("big", pages=8)
    for slot in slots:
        bench.now += 2
        bench.pool.want("big", lambda slot: slot)
        draining = [s.index for s in bench.pool.slots if s.state is State.DRAINING]
        assert draining == [slot]
        bench.pool.unpin(slot)
        bench.pool.check()
    bench.pool.want("late")
    bench.loaded("late")
    assert bench.state("big") is State.RESIDENT
    assert bench.state("late") is None


def test_a_small_adapter_does_not_take_what_is_drained_for_an_older_big_one() -> None:
    bench = Bench(slots=4, patience=0.0, pages=8)
    bench.resident("a", "b", pages=4)
    slot, other = bench.pinned("a"), bench.pinned("b")
    bench.pool.want("big")
    bench.loaded("big", pages=8)
    bench.pool.want("big", lambda slot: slot)
    bench.pool.unpin(slot)
    bench.now += 1
    bench.pool.want("small")
    bench.loaded("small")
    assert bench.state("small") is None
    bench.pool.want("big", lambda slot: slot)
    bench.pool.unpin(other)
    bench.pool.poll()
    assert bench.state("big") is State.RESIDENT


def test_an_adapter_larger_than_all_memory_is_refused_at_once_with_both_sizes() -> None:
    bench = Bench(slots=2, pages=256)
    bench.pool.want("giant")
    error = bench.loaded("giant", pages=512)["giant"]
    assert isinstance(error, AdapterUnavailable)
    assert "2.0 MiB" in error.message
    assert "1.0 MiB" in error.message
    assert bench.pool.loading == 0


def test_an_adapter_that_pins_leave_no_memory_for_is_refused() -> None:
    bench = Bench(slots=4, pages=8)
    bench.resident("held", pages=6)
    bench.pool.hold("held")
    bench.pool.want("big")
    assert isinstance(bench.loaded("big", pages=3)["big"], AdapterUnavailable)
    bench.pool.want("small")
    assert bench.loaded("small", pages=2) == {}
    assert bench.state("small") is State.RESIDENT


def test_an_adapter_that_fits_in_no_place_between_pins_is_refused_and_starves_nobody() -> None:
    bench = Bench(slots=4, patience=0.0, pages=8)
    bench.resident("a", pages=3)
    bench.resident("held", pages=1)
    bench.pool.hold("held")
    bench.pinned("a")
    bench.pool.want("big", lambda _: 1)
    error = bench.loaded("big", pages=5, whole=True)["big"]
    assert isinstance(error, AdapterUnavailable)
    assert "between" in error.message
    bench.pool.want("fits", lambda _: 1)
    assert bench.loaded("fits", pages=4, whole=True) == {}
    assert (bench.state("a"), bench.state("fits")) == (State.RESIDENT, State.RESIDENT)


def test_pins_leave_a_slot_s_share_of_memory() -> None:
    bench = Bench(slots=4, pages=8)
    refused = bench.pool.bring("big", hold=True)
    bench.loaded("big", pages=7)
    with pytest.raises(PinsFull):
        refused.result()
    bench.pool.poll()
    assert bench.pool.held == set()
    assert bench.state("big") is State.RESIDENT


def test_what_may_not_be_pinned_and_finds_no_room_is_let_go_of_unless_a_sequence_waits_for_it() -> None:
    bench = Bench(slots=4, pages=8)
    bench.resident("a", pages=2)
    bench.pinned("a")
    bench.now += 60
    for digest in ("big", "wanted"):
        bench.pool.bring(digest, hold=True)
    bench.pool.want("wanted")
    for digest in ("big", "wanted"):
        bench.loaded(digest, pages=7)
    assert bench.pool.coming == ("wanted",)
    assert bench.pool.held == set()
