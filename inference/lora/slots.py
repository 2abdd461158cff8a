"""Knows which adapter is in which slot, who uses it and what comes next; never tensors, files or tenants.

An adapter is first loaded to the host, then given a slot and room in device memory, then copied there. So a slow load
takes nobody's place, and who makes room for it is emptied when it comes, not before. A slot is free, loading (being
filled), resident or draining. Sequences pin the slot they run on; a pinned slot is never emptied. Loads and copies run
elsewhere, and the pool only looks whether they are done: `poll` between two steps, never a wait. All methods are called
by the engine's own thread.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from inference.errors import EngineError, PinsFull
from inference.lora.arrivals import Arrivals
from inference.lora.bounded import Tally
from inference.lora.preloads import Preloads
from inference.lora.refusals import as_engine_error, refusal
from inference.lora.slot import Anywhere, Room, Slot, State, Tables
from inference.lora.weights import AdapterWeights

__all__ = ["Slot", "SlotPool", "State"]

Left = Callable[[int], int]  # tokens still to be generated on a slot

UNASKED = 10  # times the patience of a preload, while sequences wait for slots
GRACE = 10.0  # seconds that a just loaded adapter is kept for the sequence that asked for it


class SlotPool:
    """`load` starts bringing an adapter to the host and gives its future. `room` is the device's memory.

    `patience`: seconds that an adapter may starve while every slot is pinned or memory is taken, before the slot with
    the least left to do is drained for it. `cost`: of one of an adapter's tokens to a step.
    """

    def __init__(
        self,
        slots: int,
        tables: Tables,
        load: Callable[[str], Future[AdapterWeights]],
        patience: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        room: Room | None = None,
        cost: Callable[[AdapterWeights], float] = lambda _: 1.0,
    ) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self.room: Room = room or Anywhere()
        self._tables = tables
        self._patience = patience
        self._clock = clock
        self._cost = cost
        self._by_digest: dict[str, Slot] = {}
        self._arrivals = Arrivals(load, slots, clock)
        self._preloads = Preloads()
        self._line: list[str] = []  # whom slots are to be drained for, in the order that they asked since the last poll
        self.held: set[str] = set()  # make no room for others, and are not drained
        self.tally = Tally()

    def pin(self, digest: str) -> int | None:
        """The adapter's slot, pinned; None when it is not resident."""
        slot = self._by_digest.get(digest)
        if slot is None or slot.state is not State.RESIDENT:
            return None
        slot.pins += 1
        slot.used, slot.kept_until, slot.asked = self._clock(), 0.0, False
        self.tally.hits += 1
        return slot.index

    def unpin(self, index: int) -> None:
        slot = self.slots[index]
        assert slot.pins > 0, "a slot was unpinned more often than pinned"
        slot.pins -= 1
        slot.used = self._clock()
        if slot.state is State.DRAINING and slot.pins == 0:
            heir = slot.heir
            self._empty(slot)
            if heir:
                slot.heir = heir
                self._place(heir)
            else:
                self.room.trim()

    def cost(self, index: int) -> float:
        """What a token of the slot's adapter costs a step; one of the base costs 1."""
        return self.slots[index].cost

    def want(self, digest: str, left: Left | None = None) -> None:
        """A sequence waits for the adapter: bring it in as soon as a slot and memory can be had.

        Without `left`, which the scheduler gives, no slot is drained.
        """
        slot = self._by_digest.get(digest)
        if slot is not None:
            slot.asked = True
        else:
            self._arrivals.waits(digest)
            self._arrivals.waited.add(digest)
            self._seek(digest, left, self._patience)

    def hold(self, digest: str) -> None:
        """Never empty or drain the adapter's slot for another one. Raises PinsFull: one slot stays for the others."""
        if digest not in self.held and len(self.held) + 1 >= len(self.slots):
            raise PinsFull(f"{len(self.held)} adapters are pinned, of {len(self.slots)} slots; one stays free.")
        self.held.add(digest)

    def let_go(self, digest: str) -> None:
        """Undo `hold`."""
        self.held.discard(digest)

    def bring(self, digest: str, *, hold: bool = False) -> Future[None]:
        """Load an adapter that no sequence waits for; done when it is resident, failed when it can't be loaded."""
        if hold:
            self.hold(digest)
        future = self._preloads.ask(digest, pin=hold)
        slot = self._by_digest.get(digest)
        if slot is not None and slot.state is State.RESIDENT:
            slot.kept_until = self._clock() + GRACE
        self._bring_on(digest)
        return future

    def poll(self, left: Left | None = None) -> list[tuple[str, EngineError]]:
        """Take in the loads that are done; the digests that failed, with the reason. `left` as for `want`."""
        self._line.clear()
        self._miss_leavers()
        failures = self._take_arrivals()
        failures += [failure for slot in self.slots if (failure := self._take_in(slot))]
        for digest, error in failures:
            self._give_up(digest)
            self._settle(digest, error)
        places = sum(slot.state is State.FREE for slot in self.slots) + len(self._idle())
        self._arrivals.review(places, {slot.heir for slot in self.slots})
        crowded = any(map(self._arrivals.weights, self._arrivals.waited))
        for digest in self._preloads:
            self._bring_on(digest, left, UNASKED * self._patience if crowded else self._patience)
        return failures

    def drained_for(self, digest: str) -> Slot | None:
        """The slot that will be the adapter's as soon as its last sequence has left."""
        return next((slot for slot in self.slots if slot.heir == digest and slot.pins), None)

    def evict(self, digest: str) -> None:
        """Empty the adapter's slot, held or not: now, or after its last sequence."""
        self.let_go(digest)
        self._give_up(digest)
        slot = self._by_digest.get(digest)
        if slot is None:
            return
        if slot.state is State.LOADING:
            slot.doomed = True
        elif slot.pins:
            slot.state, slot.doomed = State.DRAINING, True
        else:
            self._empty(slot)
            self.room.trim()

    def awaited(self, digest: str) -> bool:
        """Whether sequences were promised this adapter, and none has run on it yet."""
        slot = self._by_digest.get(digest)
        return digest in self._arrivals.waited if slot is None else slot.asked

    def forget(self, digest: str) -> None:
        """No sequence waits for this adapter any more. A load that began goes on, to the host, and is not kept."""
        slot = self._by_digest.get(digest)
        if slot is not None:
            slot.asked, slot.kept_until = False, 0.0
        self._arrivals.waited.discard(digest)
        if digest not in self._preloads:
            self._give_up(digest)

    @property
    def loading(self) -> int:
        """How many adapters are on their way."""
        return len(self._arrivals.loads) + sum(slot.copy is not None for slot in self.slots)

    def state(self, digest: str) -> Slot | None:
        return self._by_digest.get(digest)

    @property
    def coming(self) -> tuple[str, ...]:
        """The adapters on their way to the host, or there and without a slot."""
        return tuple(self._arrivals.loads)

    def occupied(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.state is not State.FREE)

    def check(self) -> None:
        """Assert that every slot is in one state and found by its digest, and holds exactly the pages leased."""
        for slot in self.slots:
            assert (slot.state is State.FREE) == (slot.digest == "") == (slot.lease is None)
            assert (slot.state is State.LOADING) == (slot.copy is not None)
            assert slot.pins == 0 or slot.state in (State.RESIDENT, State.DRAINING)
            assert slot.state is not State.DRAINING or slot.pins > 0
            assert not slot.doomed or slot.state in (State.LOADING, State.DRAINING), "an unload was forgotten"
            assert not slot.heir or self._arrivals.weights(slot.heir), "a slot is kept for an adapter that is not there"
        assert {slot.digest: slot for slot in self.occupied()} == self._by_digest
        assert not self._by_digest.keys() & self._arrivals.since.keys()
        self._arrivals.check()
        assert sum(slot.pages for slot in self.slots) == self.room.leased
        self.room.check()

    def _seek(self, digest: str, left: Left | None, patience: float) -> None:
        """One more step of an adapter's way into a slot."""
        waits = self._arrivals.waits(digest)
        if digest not in self._arrivals.loads:
            if self._arrivals.call(digest):
                self.tally.misses += 1
                weights = self._arrivals.weights(digest)
                if weights is not None and self._refused(digest, weights) is None:
                    self._place(digest)  # it was on the host: no step is lost
        elif self._arrivals.weights(digest) and not self._place(digest) and left and waits >= patience:
            self._drain_for(digest, left)

    def _bring_on(self, digest: str, left: Left | None = None, patience: float = 0.0) -> None:
        """What a preload waits for, sequences or not."""
        slot = self._by_digest.get(digest)
        if slot is None:
            self._seek(digest, left, patience)
        elif slot.state is State.RESIDENT:
            self._settle(digest)

    def _miss_leavers(self) -> None:
        """Undo what was begun for those who asked and went away: pins, and loads that no sequence waits for."""
        for digest in self._preloads:
            if self._preloads.miss(digest):
                self.let_go(digest)
            if digest not in self._preloads and not self.awaited(digest):
                self._give_up(digest)

    def _take_arrivals(self) -> list[tuple[str, EngineError]]:
        """Place what has come to the host, where there is room; what never will be resident, with the reason."""
        failures: list[tuple[str, EngineError]] = []
        for digest in self._arrivals.done():
            error = self._failed(digest)
            if error is None:
                self._place(digest)
            elif isinstance(error, PinsFull):
                self._settle(digest, error)  # it may be resident, only not pinned
                if not self._place(digest) and not self.awaited(digest):
                    self._give_up(digest)
            else:
                failures.append((digest, error))
        return failures

    def _failed(self, digest: str) -> EngineError | None:
        """Why an adapter whose load is done will never be resident."""
        load = self._arrivals.loads[digest].future
        error = load.exception()
        return self._refused(digest, load.result()) if error is None else as_engine_error(error)

    def _refused(self, digest: str, weights: AdapterWeights) -> EngineError | None:
        return refusal(digest, weights, self.room, self.slots, self.held)

    def _place(self, digest: str) -> bool:
        """Give an adapter that is on the host a slot and memory, emptying others for it if need be, and fill it."""
        weights = self._arrivals.weights(digest)
        if weights is None:
            return False
        found = self._make_room(digest, weights)
        if found is None:
            return False
        slot, lease = found
        slot.asked = self.awaited(digest)
        self._give_up(digest)
        slot.state, slot.digest, slot.lease, slot.copy = State.LOADING, digest, lease, self.room.fill(lease, weights)
        slot.used = self._clock()
        self._by_digest[digest] = slot
        return True

    def _make_room(self, digest: str, weights: AdapterWeights) -> tuple[Slot, Any] | None:
        """A slot and a lease; the least recently used of the idle make room, but none of them in vain."""
        idle = sorted(self._idle(), key=lambda slot: slot.used)
        since = self._arrivals.since
        heirs = {slot.heir for slot in self.slots} - {"", digest}
        promised = sum(self._needs(heir) for heir in heirs if since[heir] < since[digest])
        if self.room.free + sum(slot.pages for slot in idle) < self.room.pages(weights) + promised:
            return None
        kept = [slot.lease for slot in self.occupied() if slot not in idle]
        while True:
            free = [slot for slot in self.slots if slot.state is State.FREE and slot.heir in ("", digest)]
            if free and (lease := self.room.lease(weights)) is not None:
                return min(free, key=lambda slot: slot.heir != digest), lease
            if not idle or not self.room.fits(weights, kept):
                return None
            self._empty(idle.pop(0))
            self.tally.evictions += 1

    def _needs(self, digest: str) -> int:
        weights = self._arrivals.weights(digest)
        return self.room.pages(weights) if weights is not None else 0

    def _idle(self) -> list[Slot]:
        """The slots that can be emptied now."""
        now = self._clock()
        return [slot for slot in self._movable() if not slot.pins and now >= slot.kept_until]

    def _movable(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.state is State.RESIDENT and slot.digest not in self.held)

    def _drain_for(self, digest: str, left: Left) -> None:
        """One slot at a time: if it frees too little memory, another follows.

        Who asked first comes first, though no slot was pinned then: what just came is pinned by those who come later.
        """
        self._line.append(digest)
        pinned = [slot for slot in self._movable() if slot.pins]
        served = {slot.heir for slot in self.slots if slot.state is State.DRAINING}
        heir = next((each for each in self._line if each not in served and self._arrivals.weights(each)), None)
        if pinned and heir is not None:
            slot = min(pinned, key=lambda slot: left(slot.index))
            slot.state, slot.heir = State.DRAINING, heir

    def _take_in(self, slot: Slot) -> tuple[str, EngineError] | None:
        """Install a slot that has been filled; its digest and the reason if that failed."""
        if slot.copy is None or not slot.copy.done():
            return None
        digest, copy, slot.copy = slot.digest, slot.copy, None
        error = copy.exception()
        if error is not None or slot.doomed:
            self._empty(slot)
            self.room.trim()
            return (digest, as_engine_error(error)) if error is not None else None
        weights = copy.result()
        self._tables.install(slot.index, weights)
        slot.state, slot.bytes, slot.cost = State.RESIDENT, weights.nbytes, self._cost(weights)
        self.tally.loads += 1
        self.tally.seconds += self._clock() - slot.used
        slot.used = self._clock()
        if slot.asked or digest in self._preloads:
            slot.kept_until = slot.used + GRACE
        self._settle(digest)
        return None

    def _give_up(self, digest: str) -> None:
        """Stop bringing an adapter in, and keep no slot for it."""
        self._arrivals.give_up(digest)
        for slot in self.slots:
            if slot.heir == digest:
                slot.heir = ""
                if slot.state is State.DRAINING and not slot.doomed:
                    slot.state = State.RESIDENT

    def _settle(self, digest: str, error: EngineError | None = None) -> None:
        """Tell those who asked before; a pin that nobody can be told of is none."""
        if self._preloads.tell(digest, error) or error is not None:
            self.let_go(digest)

    def _empty(self, slot: Slot) -> None:
        assert slot.pins == 0, "a pinned slot was emptied"
        self._tables.clear(slot.index)
        self.room.release(slot.lease)
        del self._by_digest[slot.digest]
        slot.__init__(slot.index)  # type: ignore[misc]
