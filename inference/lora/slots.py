"""Knows which adapter is in which slot, who uses it and what comes next; never tensors, files or tenants.

A slot is free, loading, resident or draining. Sequences pin the slot they run on; a pinned slot is never emptied. Loads
run elsewhere, and the pool only looks whether they are done: `poll` between two steps, never a wait. All methods are
called by the engine's own thread.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from inference.errors import AdapterUnavailable, EngineError, PinsFull
from inference.lora.weights import AdapterWeights

GRACE = 10.0  # seconds that a just loaded adapter is kept for the sequence that asked for it


class State(StrEnum):
    FREE = "free"
    LOADING = "loading"
    RESIDENT = "resident"
    DRAINING = "draining"


class Tables(Protocol):
    """Where a slot's weights are put so that the linears find them."""

    def install(self, slot: int, weights: AdapterWeights) -> None: ...

    def clear(self, slot: int) -> None: ...


@dataclass
class Slot:
    index: int
    state: State = State.FREE
    digest: str = ""
    pins: int = 0
    bytes: int = 0
    used: float = 0.0  # when it was last pinned or unpinned
    kept_until: float = 0.0  # not evicted before, unless it was used
    heir: str = ""  # the adapter that a draining slot is emptied for
    load: Future[AdapterWeights] | None = None
    doomed: bool = False  # evicted while it was loading


class SlotPool:
    """`load` starts reading an adapter and gives its future. `patience`: seconds that an adapter may starve while every
    slot is pinned, before the slot with the least left to do is drained for it."""

    def __init__(
        self,
        slots: int,
        tables: Tables,
        load: Callable[[str], Future[AdapterWeights]],
        patience: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self._tables = tables
        self._load = load
        self._patience = patience
        self._clock = clock
        self._by_digest: dict[str, Slot] = {}
        self._starving: dict[str, float] = {}
        self._brought: dict[str, list[Future[None]]] = {}
        self.held: set[str] = set()  # make no room for others, and are not drained
        self.loads = 0
        self.evictions = 0

    def pin(self, digest: str) -> int | None:
        """The adapter's slot, pinned; None when it is not resident."""
        slot = self._by_digest.get(digest)
        if slot is None or slot.state is not State.RESIDENT:
            return None
        slot.pins += 1
        slot.used, slot.kept_until = self._clock(), 0.0
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
                self._start(slot, heir)

    def want(self, digest: str, left: Callable[[int], int] | None = None) -> None:
        """Bring the adapter in as soon as a slot can be had.

        `left`: tokens still to be generated on a slot. The scheduler gives it; without it no slot is drained.
        """
        if digest in self._by_digest or any(slot.heir == digest for slot in self.slots):
            return
        slot = self._room()
        if slot is not None:
            self._starving.pop(digest, None)
            self._start(slot, digest)
        elif left is not None and self._clock() - self._starving.setdefault(digest, self._clock()) >= self._patience:
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
        for slot in self.slots:
            if slot.load is None or not slot.load.done():
                continue
            digest, load, slot.load = slot.digest, slot.load, None
            error = load.exception()
            if error is not None:
                self._empty(slot)
                failures.append((digest, _as_engine_error(error)))
                self._settle(digest, failures[-1][1])
            elif slot.doomed:
                self._empty(slot)
            else:
                self._install(slot, load.result())
                self._settle(digest)
        for digest in self._brought:
            self.want(digest)
        return failures

    def evict(self, digest: str) -> None:
        """Empty the adapter's slot, held or not: now, or after its last sequence."""
        self.let_go(digest)
        slot = self._by_digest.get(digest)
        if slot is None:
            return
        if slot.state is State.LOADING:
            slot.doomed = True
        elif slot.pins:
            slot.state = State.DRAINING
        else:
            self._empty(slot)

    def awaited(self, digest: str) -> bool:
        """Whether the adapter starves for a slot, or one is drained for it."""
        return digest in self._starving or any(slot.heir == digest for slot in self.slots)

    def forget(self, digest: str) -> None:
        """Nobody waits for this adapter any more."""
        self._starving.pop(digest, None)
        for slot in self.slots:
            if slot.heir == digest:
                slot.heir, slot.state = "", State.RESIDENT

    @property
    def loading(self) -> int:
        return sum(slot.load is not None for slot in self.slots)

    def state(self, digest: str) -> Slot | None:
        return self._by_digest.get(digest)

    def occupied(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.state is not State.FREE)

    def check(self) -> None:
        """Assert that every slot is in one state and found by its digest."""
        for slot in self.slots:
            assert (slot.state is State.FREE) == (slot.digest == "")
            assert (slot.state is State.LOADING) == (slot.load is not None)
            assert slot.pins == 0 or slot.state in (State.RESIDENT, State.DRAINING)
            assert slot.state is not State.DRAINING or slot.pins > 0
        assert {slot.digest: slot for slot in self.occupied()} == self._by_digest

    def _room(self) -> Slot | None:
        """A free slot, else the least recently used of those that nobody needs, emptied."""
        free = next((slot for slot in self.slots if slot.state is State.FREE), None)
        if free is not None:
            return free
        now = self._clock()
        idle = [slot for slot in self._movable() if not slot.pins and now >= slot.kept_until]
        if not idle:
            return None
        slot = min(idle, key=lambda slot: slot.used)
        self.evictions += 1
        self._empty(slot)
        return slot

    def _movable(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.state is State.RESIDENT and slot.digest not in self.held)

    def _drain_for(self, digest: str, left: Callable[[int], int]) -> None:
        pinned = [slot for slot in self._movable() if slot.pins]
        if pinned:
            slot = min(pinned, key=lambda slot: left(slot.index))
            slot.state, slot.heir = State.DRAINING, digest
            self._starving.pop(digest, None)

    def _start(self, slot: Slot, digest: str) -> None:
        slot.state, slot.digest, slot.load = State.LOADING, digest, self._load(digest)
        self._by_digest[digest] = slot
        self.loads += 1

    def _install(self, slot: Slot, weights: AdapterWeights) -> None:
        self._tables.install(slot.index, weights)
        slot.state, slot.bytes = State.RESIDENT, weights.nbytes
        slot.used = self._clock()
        slot.kept_until = slot.used + GRACE

    def _settle(self, digest: str, error: EngineError | None = None) -> None:
        if error is not None:
            self.let_go(digest)
        for future in self._brought.pop(digest, ()):
            if future.set_running_or_notify_cancel():
                future.set_result(None) if error is None else future.set_exception(error)

    def _empty(self, slot: Slot) -> None:
        assert slot.pins == 0, "a pinned slot was emptied"
        self._tables.clear(slot.index)
        del self._by_digest[slot.digest]
        slot.__init__(slot.index)  # type: ignore[misc]


def _as_engine_error(error: BaseException) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return AdapterUnavailable(f"The adapter could not be loaded: {type(error).__name__}.")
