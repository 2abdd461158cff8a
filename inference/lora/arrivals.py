"""Knows which adapters are wanted and how far they have come to the host, and how many may be; never slots.

Called by the engine's own thread. What is done here waits for a slot, in the hands of its future, outside of the host
tier's limit: so not more is begun than finds slots soon. Of who may begin, the one that asks first does, and the
scheduler asks in fair order.
"""

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass

from inference.lora.weights import AdapterWeights

AHEAD = 4  # adapters that may be on their way beyond those that find a slot
LATE = 10.0  # seconds after which a load keeps no other from beginning


@dataclass(frozen=True, eq=False)
class Load:
    future: Future[AdapterWeights]
    begun: float


class Arrivals:
    """`since`: the wanted, from when on. `waited`: those of them that sequences wait for. `loads`: those that are on
    their way, or on the host and without a slot."""

    def __init__(
        self,
        load: Callable[[str], Future[AdapterWeights]],
        places: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.since: dict[str, float] = {}
        self.waited: set[str] = set()
        self.loads: dict[str, Load] = {}
        self._load = load
        self._clock = clock
        self._limit = self._openings = places + AHEAD

    def waits(self, digest: str) -> float:
        """Seconds since it was first wanted; from now on if it was not."""
        now = self._clock()
        return now - self.since.setdefault(digest, now)

    def call(self, digest: str) -> bool:
        """Start loading to the host, if it may begin; what no sequence waits for takes half of the places at most."""
        if not self._openings or (digest not in self.waited and 2 * self._unwaited() >= self._limit):
            return False
        self._openings -= 1
        self.loads[digest] = Load(self._load(digest), self._clock())
        return True

    def weights(self, digest: str) -> AdapterWeights | None:
        """An adapter that is on the host."""
        load = self.loads.get(digest)
        if load is None or not load.future.done() or load.future.cancelled() or load.future.exception():
            return None
        return load.future.result()

    def done(self) -> list[str]:
        """Those whose loads have ended, well or not."""
        return [digest for digest, load in self.loads.items() if load.future.done()]

    def review(self, places: int, kept: Collection[str]) -> None:
        """Between two steps: `places` slots can be had. Of what is on the host, let go of all that finds none soon.

        It is wanted still, and most likely kept by the host tier. Who waits longest stays, and so do the `kept`.
        """
        self._limit = places + AHEAD
        waiting = sorted((digest for digest in self.done() if digest not in kept), key=self.since.__getitem__)
        for digest in waiting[self._limit :]:
            del self.loads[digest]
        begun = self._clock() - LATE
        due = sum(load.future.done() or load.begun > begun for load in self.loads.values())
        self._openings = max(0, self._limit - due)

    def give_up(self, digest: str) -> None:
        """It is not wanted any more, or in a slot."""
        self.since.pop(digest, None)
        self.waited.discard(digest)
        if (load := self.loads.pop(digest, None)) is not None:
            load.future.cancel()

    def check(self) -> None:
        assert self.loads.keys() | self.waited <= self.since.keys()

    def _unwaited(self) -> int:
        return sum(digest not in self.waited for digest in self.loads)
