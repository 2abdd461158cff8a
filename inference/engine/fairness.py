"""Knows whose turn it is among fair-share keys; never what a key stands for.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2: each
share has a counter of the service it had, divided by its weight; the waiting share with the smallest one is next. A
share of which nothing waited is lifted when something does: to the smallest counter among those that wait, or to that
of the last that waited if none does. So nobody saves up service, neither by idling nor by asking for less than its due.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Container, Iterator

from inference.engine.sequence import Sequence

PROMPT_COST = 1.0
OUTPUT_COST = 2.0  # a decoded token costs about twice a prefilled one, as in the paper

Line = list[tuple[int, int, Sequence]]  # priority, arrival, who; sorted


class FairQueue:
    """Shares take turns; within a share the urgent go first (smaller priority), then by arrival."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._served: dict[str, float] = {}
        self._last = ""  # the share that left the queue last
        self._waiting = 0
        self._present = 0  # sequences, waiting or running

    def __len__(self) -> int:
        return self._waiting

    def waiting_of(self, share: str) -> int:
        return len(self._lines.get(share, ()))

    def served(self, share: str) -> float:
        """Service had so far, in prompt tokens per unit of weight; comparable between shares of which some wait."""
        return self._served.get(share, 0.0)

    def join(self, sequence: Sequence) -> None:
        """A new request."""
        self._present += 1
        self.push(sequence)

    def push(self, sequence: Sequence) -> None:
        """Into its share's line, at the place that its priority and arrival give it: a preempted one is soon next."""
        if sequence.share not in self._lines:
            self._lift(sequence.share)
        insort(self._lines.setdefault(sequence.share, []), _place(sequence))
        self._waiting += 1

    def leave(self, sequence: Sequence) -> None:
        """The request ended, wherever it was."""
        self._remove(sequence)
        self._present -= 1
        if not self._present:  # counters matter only between shares that are busy together
            self._served.clear()

    def admit(self, sequence: Sequence) -> None:
        """Off the queue and into the batch; its prompt is paid for once."""
        self._remove(sequence)
        if not sequence.charged:
            sequence.charged = True
            self.charge(sequence, PROMPT_COST * len(sequence.prompt))

    def charge(self, sequence: Sequence, cost: float) -> None:
        self._served[sequence.share] += cost / sequence.weight

    def in_order(self, passed: Container[str] = ()) -> Iterator[Sequence]:
        """Waiting sequences, the least served share's first, each share's in its line. May be admitted on the way.

        passed: shares whose lines are not followed any further; the caller may add to it on the way.
        """
        lines = [iter(tuple(line)) for line in self._lines.values()]
        heads = [self._head(line, place) for line in lines if (place := next(line, None))]
        heapq.heapify(heads)
        while heads:
            _, _, sequence, line = heapq.heappop(heads)
            yield sequence
            if sequence.share not in passed and (place := next(line, None)):
                heapq.heappush(heads, self._head(line, place))

    def _lift(self, share: str) -> None:
        """To the least served of the shares that wait."""
        others = self._lines or [self._last]
        self._served[share] = max(self.served(share), min(map(self.served, others)))

    def _head(
        self, line: Iterator[tuple[int, int, Sequence]], place: tuple[int, int, Sequence]
    ) -> tuple[float, int, Sequence, Iterator[tuple[int, int, Sequence]]]:
        sequence = place[2]
        return self._served[sequence.share], sequence.id, sequence, line

    def _remove(self, sequence: Sequence) -> None:
        line = self._lines.get(sequence.share, [])
        at = bisect_left(line, _place(sequence))
        if at < len(line) and line[at][2] is sequence:
            del line[at]
            self._waiting -= 1
            if not line:
                del self._lines[sequence.share]
                self._last = sequence.share


def _place(sequence: Sequence) -> tuple[int, int, Sequence]:
    return sequence.priority, sequence.id, sequence
