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

from inference.errors import AdapterUnavailable, EngineError, PinsFull
from inference.lora.bounded import Tally
from inference.lora.slot import Anywhere, Room, Slot, State, Tables
from inference.lora.weights import AdapterWeights

__all__ = ["Slot", "SlotPool", "State"]

GRACE = 10.0  # seconds that a just loaded adapter is kept for the sequence that asked for it
AHEAD = 4  # adapters that may wait on the host beyond those that find a slot


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
        self._load = load
        self._patience = patience
        self._clock = clock
        self._cost = cost
        self._by_digest: dict[str, Slot] = {}
        self._coming: dict[str, Future[AdapterWeights]] = {}  # to the host, or there and without a slot
        self._starving: dict[str, float] = {}  # wanted, since when
        self._brought: dict[str, list[Future[None]]] = {}
        self.held: set[str] = set()  # make no room for others, and are not drained
        self.tally = Tally()

    def pin(self, digest: str) -> int | None:
        """The adapter's slot, pinned; None when it is not resident."""
        slot = self._by_digest.get(digest)
        if slot is None or slot.state is not State.RESIDENT:
            return None
        slot.pins += 1
        slot.used, slot.kept_until = self._clock(), 0.0
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

    def want(self, digest: str, left: Callable[[int], int] | None = None) -> None:
        """Bring the adapter in as soon as a slot and memory can be had.

        `left`: tokens still to be generated on a slot. The scheduler gives it; without it no slot is drained.
        """
        if digest in self._by_digest:
            return
        now = self._clock()
        since = self._starving.setdefault(digest, now)
        if digest not in self._coming:
            self._call(digest)
            if self._ready(digest) and self._failed(digest) is None:
                self._place(digest)  # it was on the host: no step is lost
        elif self._ready(digest) and not self._place(digest) and left is not None and now - since >= self._patience:
            self._drain_for(digest, left)

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
        future: Future[None] = Future()
        slot = self._by_digest.get(digest)
        if slot is not None and slot.state is State.RESIDENT:
            slot.kept_until = self._clock() + GRACE
            future.set_result(None)
        else:
            self._brought.setdefault(digest, []).append(future)
            self.want(digest)
        return future

    def poll(self) -> list[tuple[str, EngineError]]:
        """Take in the loads that are done; the digests that failed, with the reason."""
        failures: list[tuple[str, EngineError]] = []
        for digest in [digest for digest, load in self._coming.items() if load.done()]:
            error = self._failed(digest)
            if error is None:
                self._place(digest)
            elif isinstance(error, PinsFull):
                self._settle(digest, error)  # it may be resident, only not pinned
            else:
                failures.append((digest, error))
        failures += [failure for slot in self.slots if (failure := self._take_in(slot))]
        for digest, error in failures:
            self._give_up(digest)
            self._settle(digest, error)
        for digest in list(self._brought):
            self._bring_on(digest)
        return failures

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
            slot.state = State.DRAINING
        else:
            self._empty(slot)
            self.room.trim()

    def awaited(self, digest: str) -> bool:
        """Whether somebody was promised this adapter, which is not in a slot yet."""
        return digest in self._starving

    def forget(self, digest: str) -> None:
        """No sequence waits for this adapter any more. A load that began goes on, to the host."""
        if digest not in self._brought:
            self._give_up(digest)

    @property
    def loading(self) -> int:
        """How many adapters are on their way."""
        return len(self._coming) + sum(slot.copy is not None for slot in self.slots)

    def state(self, digest: str) -> Slot | None:
        return self._by_digest.get(digest)

    @property
    def coming(self) -> tuple[str, ...]:
        """The adapters on their way to the host, or there and without a slot."""
        return tuple(self._coming)

    def occupied(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.state is not State.FREE)

    def check(self) -> None:
        """Assert that every slot is in one state and found by its digest, and holds exactly the pages leased."""
        for slot in self.slots:
            assert (slot.state is State.FREE) == (slot.digest == "") == (slot.lease is None)
            assert (slot.state is State.LOADING) == (slot.copy is not None)
            assert slot.pins == 0 or slot.state in (State.RESIDENT, State.DRAINING)
            assert slot.state is not State.DRAINING or slot.pins > 0
            assert not slot.heir or slot.heir in self._coming, "a slot is kept for an adapter that is not coming"
        assert {slot.digest: slot for slot in self.occupied()} == self._by_digest
        assert not self._by_digest.keys() & self._coming.keys()
        assert self._coming.keys() <= self._starving.keys()
        assert sum(slot.pages for slot in self.slots) == self.room.leased
        self.room.check()

    def _bring_on(self, digest: str) -> None:
        """Try again, unless who asked went away."""
        if all(future.cancelled() for future in self._brought[digest]):
            del self._brought[digest]
            self._give_up(digest)
        else:
            self.want(digest)

    def _call(self, digest: str) -> None:
        """Start loading to the host, unless more is there already than finds slots."""
        unplaced = sum(load.done() for load in self._coming.values())
        if unplaced < sum(slot.state is State.FREE for slot in self.slots) + len(self._idle()) + AHEAD:
            self._coming[digest] = self._load(digest)
            self.tally.misses += 1

    def _ready(self, digest: str) -> bool:
        load = self._coming.get(digest)
        return load is not None and load.done() and not load.cancelled() and load.exception() is None

    def _failed(self, digest: str) -> EngineError | None:
        """Why an adapter whose load is done will never be resident."""
        error = self._coming[digest].exception()
        return self._refusal(digest, self._coming[digest].result()) if error is None else _as_engine_error(error)

    def _refusal(self, digest: str, weights: AdapterWeights) -> EngineError | None:
        needed, total = self.room.pages(weights), self.room.total
        held = sum(slot.pages for slot in self.slots if slot.digest in self.held and slot.digest != digest)
        told = f"Version {digest} takes {self._size(needed)} of device memory"
        if needed > total:
            return AdapterUnavailable(f"{told}; all adapters together have {self._size(total)}.")
        if digest in self.held and needed + held > total - total // len(self.slots):
            return PinsFull(
                f"{told}; pinned ones hold {self._size(held)} of {self._size(total)}, and a slot's share stays free."
            )
        if needed + held > total:
            return AdapterUnavailable(f"{told}; pinned adapters hold {self._size(held)} of {self._size(total)}.")
        return None

    def _size(self, pages: int) -> str:
        return f"{pages * self.room.page / 2**20:.1f} MiB"

    def _place(self, digest: str) -> bool:
        """Give an adapter that is on the host a slot and memory, emptying others for it if need be, and fill it."""
        if not self._ready(digest):
            return False
        weights = self._coming[digest].result()
        found = self._make_room(digest, weights)
        if found is None:
            return False
        slot, lease = found
        self._give_up(digest)
        slot.state, slot.digest, slot.lease, slot.copy = State.LOADING, digest, lease, self.room.fill(lease, weights)
        slot.used = self._clock()
        self._by_digest[digest] = slot
        return True

    def _make_room(self, digest: str, weights: AdapterWeights) -> tuple[Slot, Any] | None:
        """A slot and a lease; the least recently used of the idle make room, but none of them in vain."""
        idle = sorted(self._idle(), key=lambda slot: slot.used)
        since = self._starving[digest]
        heirs = {slot.heir for slot in self.slots} - {"", digest}
        promised = sum(self._needs(heir) for heir in heirs if self._starving[heir] < since)
        if self.room.free + sum(slot.pages for slot in idle) < self.room.pages(weights) + promised:
            return None
        while True:
            free = [slot for slot in self.slots if slot.state is State.FREE and slot.heir in ("", digest)]
            if free and (lease := self.room.lease(weights)) is not None:
                return min(free, key=lambda slot: slot.heir != digest), lease
            if not idle:
                return None
            self._empty(idle.pop(0))
            self.tally.evictions += 1

    def _needs(self, digest: str) -> int:
        return self.room.pages(self._coming[digest].result()) if self._ready(digest) else 0

    def _idle(self) -> list[Slot]:
        """The slots that can be emptied now."""
        now = self._clock()
        return [slot for slot in self._movable() if not slot.pins and now >= slot.kept_until]

    def _movable(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.state is State.RESIDENT and slot.digest not in self.held)

    def _drain_for(self, digest: str, left: Callable[[int], int]) -> None:
        """One slot at a time: if it frees too little memory, another follows."""
        pinned = [slot for slot in self._movable() if slot.pins]
        if pinned and not any(slot.state is State.DRAINING and slot.heir == digest for slot in self.slots):
            slot = min(pinned, key=lambda slot: left(slot.index))
            slot.state, slot.heir = State.DRAINING, digest

    def _take_in(self, slot: Slot) -> tuple[str, EngineError] | None:
        """Install a slot that has been filled; its digest and the reason if that failed."""
        if slot.copy is None or not slot.copy.done():
            return None
        digest, copy, slot.copy = slot.digest, slot.copy, None
        error = copy.exception()
        if error is not None or slot.doomed:
            self._empty(slot)
            self.room.trim()
            return (digest, _as_engine_error(error)) if error is not None else None
        weights = copy.result()
        self._tables.install(slot.index, weights)
        slot.state, slot.bytes, slot.cost = State.RESIDENT, weights.nbytes, self._cost(weights)
        self.tally.loads += 1
        self.tally.seconds += self._clock() - slot.used
        slot.used = self._clock()
        slot.kept_until = slot.used + GRACE
        self._settle(digest)
        return None

    def _give_up(self, digest: str) -> None:
        """Stop bringing an adapter in, and keep no slot for it."""
        self._starving.pop(digest, None)
        if (load := self._coming.pop(digest, None)) is not None:
            load.cancel()
        for slot in self.slots:
            if slot.heir == digest:
                slot.heir = ""
                if slot.state is State.DRAINING:
                    slot.state = State.RESIDENT

    def _settle(self, digest: str, error: EngineError | None = None) -> None:
        if error is not None:
            self.let_go(digest)
        for future in self._brought.pop(digest, ()):
            if future.set_running_or_notify_cancel():
                future.set_result(None) if error is None else future.set_exception(error)

    def _empty(self, slot: Slot) -> None:
        assert slot.pins == 0, "a pinned slot was emptied"
        self._tables.clear(slot.index)
        self.room.release(slot.lease)
        del self._by_digest[slot.digest]
        slot.__init__(slot.index)  # type: ignore[misc]


def _as_engine_error(error: BaseException) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return AdapterUnavailable(f"The adapter could not be loaded: {type(error).__name__}.")
