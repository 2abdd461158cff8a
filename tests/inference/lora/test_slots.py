"""What may happen to a slot, and what never may: a pinned one is not emptied, a load is not lost."""

from concurrent.futures import Future
from typing import Any

import pytest
import torch

from inference.errors import AdapterMissing, AdapterUnavailable, PinsFull
from inference.lora.arena import PAGE, Arena
from inference.lora.slots import AHEAD, SlotPool, State
from inference.lora.weights import AdapterWeights


class Bench:
    """A pool whose loads finish when the test says so, on a clock that it sets.

    With `pages` there is an arena of so many, and adapters are of a size that the test says.
    """

    def __init__(self, slots: int = 2, patience: float = 1.0, pages: int = 0) -> None:
        self.now = 0.0
        self.loads: dict[str, Future[Any]] = {}
        self.tables: dict[int, Any] = {}
        self.arena = Arena(pages * PAGE, torch.device("cpu")) if pages else None
        self.pool = SlotPool(slots, self, self.load, patience, lambda: self.now, self.arena)

    def load(self, digest: str) -> Future[Any]:
        self.loads[digest] = Future()
        self.loads[digest].set_running_or_notify_cancel()
        return self.loads[digest]

    def install(self, slot: int, weights: Any) -> None:
        self.tables[slot] = weights

    def clear(self, slot: int) -> None:
        self.tables.pop(slot, None)

    @property
    def nbytes(self) -> int:
        return 7

    def state(self, digest: str) -> State | None:
        slot = self.pool.state(digest)
        return slot.state if slot else None

    def pinned(self, digest: str) -> int:
        slot = self.pool.pin(digest)
        assert slot is not None, f"{digest} is not resident"
        return slot

    def resident(self, *digests: str, pages: int = 1) -> None:
        for digest in digests:
            self.pool.want(digest)
            self.loaded(digest, pages)
            self.now += 0.01

    def loaded(self, digest: str, pages: int = 1) -> dict[str, Any]:
        """A load ends, with an adapter of so many pages, each a tensor of its own; what failed then."""
        self.loads[digest].set_result(self if self.arena is None else sized(*[PAGE] * pages))
        failures = dict(self.pool.poll())
        self.pool.check()
        return failures


def sized(*sizes: int) -> AdapterWeights:
    """An adapter of tensors of so many bytes."""
    buffer = torch.zeros(sum(sizes), dtype=torch.uint8)
    starts = tuple(int(part.storage_offset()) for part in torch.split(buffer, list(sizes)))
    return AdapterWeights({}, len(buffer), buffer=buffer, starts=starts)


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


def test_while_all_slots_are_taken_only_a_few_adapters_are_brought_to_the_host() -> None:
    bench = Bench(slots=1)
    bench.resident("a")
    bench.pinned("a")
    for number in range(20):
        bench.pool.want(f"x{number}")
    assert len(bench.loads) == 21, "loads that are under way hold no memory yet"
    for number in range(20):
        bench.loaded(f"x{number}")
    for number in range(20, 40):
        bench.pool.want(f"x{number}")
    assert len(bench.loads) == 21
    assert bench.pool.loading > AHEAD


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


def test_pins_leave_a_slot_s_share_of_memory() -> None:
    bench = Bench(slots=4, pages=8)
    refused = bench.pool.bring("big", hold=True)
    bench.loaded("big", pages=7)
    with pytest.raises(PinsFull):
        refused.result()
    bench.pool.poll()
    assert bench.pool.held == set()
    assert bench.state("big") is State.RESIDENT


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
