"""Knows what a slot is, and what it needs of the device: tables to be found in, memory to lie in; never who uses it."""

from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from inference.lora.weights import AdapterWeights


class State(StrEnum):
    FREE = "free"
    LOADING = "loading"
    RESIDENT = "resident"
    DRAINING = "draining"


class Tables(Protocol):
    """Where a slot's weights are put so that the linears find them."""

    def install(self, slot: int, weights: AdapterWeights) -> None: ...

    def clear(self, slot: int) -> None: ...


class Room(Protocol):
    """Device memory, in pages of `page` bytes. `arena.Arena` is one."""

    page: int

    @property
    def total(self) -> int: ...

    @property
    def free(self) -> int: ...

    @property
    def leased(self) -> int: ...

    def pages(self, weights: AdapterWeights) -> int:
        """What an adapter takes at least."""

    def lease(self, weights: AdapterWeights) -> Any:
        """Room for an adapter, None if there is none. What is leased has `pages`."""

    def fits(self, weights: AdapterWeights, kept: Collection[Any]) -> bool:
        """Whether there would be room for an adapter if all leases but the `kept` were released."""

    def fill(self, lease: Any, weights: AdapterWeights) -> Future[AdapterWeights]: ...

    def release(self, lease: Any) -> None: ...

    def trim(self) -> None: ...

    def check(self) -> None: ...


class Anywhere:
    """Room for weights that `load` has brought to the device already: there is nothing to lease or to copy."""

    page = total = free = leased = 0

    @dataclass
    class Nothing:
        pages: int = 0

    def pages(self, weights: AdapterWeights) -> int:
        return 0

    def lease(self, weights: AdapterWeights) -> Nothing:
        return self.Nothing()

    def fits(self, weights: AdapterWeights, kept: Collection[Nothing]) -> bool:
        return True

    def fill(self, lease: Nothing, weights: AdapterWeights) -> Future[AdapterWeights]:
        future: Future[AdapterWeights] = Future()
        future.set_result(weights)
        return future

    def release(self, lease: Nothing) -> None: ...

    def trim(self) -> None: ...

    def check(self) -> None: ...


@dataclass
class Slot:
    index: int
    state: State = State.FREE
    digest: str = ""
    pins: int = 0
    bytes: int = 0
    cost: float = 1.0  # of one of its tokens to a step; one of the base costs 1
    used: float = 0.0  # when it was last pinned or unpinned; first, when it began to be filled
    kept_until: float = 0.0  # not evicted before, unless it was used
    asked: bool = False  # sequences wait for it since it was to be filled, and none has run on it yet
    heir: str = ""  # the adapter that a draining slot is emptied, and a free one kept, for
    lease: Any = None
    copy: Future[AdapterWeights] | None = None
    doomed: bool = False  # evicted while it was being filled, or used: nothing brings it back

    @property
    def pages(self) -> int:
        return 0 if self.lease is None else int(self.lease.pages)
