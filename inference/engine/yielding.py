"""Knows which running sequence gives way to which waiting one; changes nothing itself.

Who waits drives out who runs if its share has had less service by a quantum, and has no row or would still have fewer
rows by its weight than the other's had before. So rows are never moved beyond an even split, and where there are more
shares than rows they take turns. A turn has a least length, so that two shares never thrash.
"""

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Seq

from inference.engine.fairness import FairQueue
from inference.engine.sequence import Sequence

QUANTUM = 1.0  # of service for every row of the batch: what the batch is given in half a step of decoding
TURN = 64  # tokens that a sequence generates at least before it gives way, if it drove out another or was driven out


class Yielding:
    """`running` is the scheduler's own list, in order of admission; `quantum` in service, for a weight of 1."""

    def __init__(self, queue: FairQueue, running: Seq[Sequence], quantum: float) -> None:
        self._queue = queue
        self._running = running
        self._quantum = quantum
        self._seen: list[Sequence] | None = None  # who ran when the two below were made
        self._ripe: list[Sequence] = []  # whose turn was long enough, in the order in which they give way
        self._rows: Counter[str] = Counter()  # by share

    def forget(self) -> None:
        """Those who run had service since, so that their order may be another: once a step."""
        self._seen = None

    def outranks(self, waiting: Sequence, running: Sequence, price: float = 0.0) -> bool:
        """Whether the first one's share has had less service than the other's, by a quantum and a price beyond it."""
        gap = self._queue.served(running.share) - self._queue.served(waiting.share)
        return gap >= (self._quantum + price) / running.weight

    def outranks_any(self, waiting: Sequence) -> bool:
        """Whether there is a point in asking further; if not, there is none for whoever comes later in fair order."""
        return any(self.outranks(waiting, running) for running in self._running)

    def to(self, waiting: Sequence, price: float = 0.0) -> Iterator[Sequence]:
        """Who gives way to it at that price, of the most served share the least urgent and newest first."""
        self._look()
        if not self._ripe or not waiting.entitled:
            return
        held = self._rows.copy()
        mine = held[waiting.share]
        for other in self._ripe:
            even = not mine or (mine + 1) / waiting.weight <= held[other.share] / other.weight
            if even and self.outranks(waiting, other, price):
                held[other.share] -= 1
                yield other

    def _look(self) -> None:
        if self._seen == self._running:
            return
        self._seen = list(self._running)
        places = [place for place, each in enumerate(self._seen) if each.generated >= each.stays_until]
        self._ripe = [self._seen[place] for place in sorted(places, key=self.claims, reverse=True)]
        self._rows = Counter(each.share for each in self._seen)

    def claims(self, place: int) -> tuple[float, int, int]:
        """How little entitled to go on is who runs at this place: by its share's service, then by its own turn."""
        sequence = self._running[place]
        return self._queue.served(sequence.share), sequence.priority, place


def least_turn(sequence: Sequence, *, drove: bool) -> int:
    """How much a sequence that gets a row will have generated before it gives way: a token at least."""
    return sequence.generated + (TURN if drove or sequence.begun else 1)
