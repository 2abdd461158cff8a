"""A pool of slots on a clock and loads that the test drives."""

from concurrent.futures import Future
from typing import Any

import torch

from inference.lora.arena import PAGE, Arena
from inference.lora.slots import SlotPool, State
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

    def loaded(self, digest: str, pages: int = 1, *, whole: bool = False) -> dict[str, Any]:
        """A load ends, with an adapter of so many pages, each a tensor of its own or all one; what failed then."""
        sizes = [PAGE * pages] if whole else [PAGE] * pages
        self.loads[digest].set_result(self if self.arena is None else sized(*sizes))
        failures = dict(self.pool.poll())
        self.pool.check()
        return failures


def sized(*sizes: int) -> AdapterWeights:
    """An adapter of tensors of so many bytes."""
    buffer = torch.zeros(sum(sizes), dtype=torch.uint8)
    starts = tuple(int(part.storage_offset()) for part in torch.split(buffer, list(sizes)))
    return AdapterWeights({}, len(buffer), buffer=buffer, starts=starts)
