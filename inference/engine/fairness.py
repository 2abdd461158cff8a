"""Knows whose turn it is among fair-share keys; never what a key stands for.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2: each
share has a counter of the service it had, divided by its weight; the waiting share with the smallest one is next. A
share that comes back after idling is lifted to the smallest counter among the busy ones, so nobody saves up service.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator

from inference.engine.sequence import Sequence

PROMPT_COST = 1.0
OUTPUT_COST = 2.0  # a decoded token costs about twice a prefilled one, as in the paper


class FairQueue:
    def __init__(self) -> None:
        self._waiting: dict[str, OrderedDict[int, Sequence]] = {}
        self._served: dict[str, float] = {}
        self._present: Counter[str] = Counter()  # sequences of a share, waiting or running

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def waiting_of(self, share: str) -> int:
        return len(self._waiting.get(share, ()))

    def join(self, sequence: Sequence) -> None:
        """A new request; its share is lifted if it was idle."""
        share = sequence.share
        if not self._present[share]:
            busy = [self._served[other] for other, count in self._present.items() if count]
            self._served[share] = max(self._served.get(share, 0.0), min(busy, default=0.0))
        self._present[share] += 1
        self._line(sequence)[sequence.id] = sequence

    def leave(self, sequence: Sequence) -> None:
        """The request ended, wherever it was."""
        self._remove(sequence)
        self._present[sequence.share] -= 1
        assert self._present[sequence.share] >= 0
        if not self._present[sequence.share]:
            del self._present[sequence.share]
            self._forget_idle()

    def push_front(self, sequence: Sequence) -> None:
        """Back to waiting, as its share's next: a preempted sequence."""
        line = self._line(sequence)
        line[sequence.id] = sequence
        line.move_to_end(sequence.id, last=False)

    def admit(self, sequence: Sequence) -> None:
        """Off the queue and into the batch; its prompt is paid for once."""
        self._remove(sequence)
        if not sequence.charged:
            sequence.charged = True
            self.charge(sequence, PROMPT_COST * len(sequence.prompt))

    def charge(self, sequence: Sequence, cost: float) -> None:
        self._served[sequence.share] += cost / sequence.weight

    def served(self, share: str) -> float:
        return self._served.get(share, 0.0)

    def in_order(self) -> Iterator[Sequence]:
        """Waiting sequences, the least served share's first, each share's in its line. May be admitted on the way."""
        heads = []
        for share, queue in self._waiting.items():
            line = iter(list(queue.values()))
            first = next(line, None)
            if first is not None:
                heads.append((self._served[share], first.id, first, line))
        heapq.heapify(heads)
        while heads:
            _, _, sequence, line = heapq.heappop(heads)
            yield sequence
            following = next(line, None)
            if following is not None:
                heapq.heappush(heads, (self._served[following.share], following.id, following, line))

    def _line(self, sequence: Sequence) -> OrderedDict[int, Sequence]:
        return self._waiting.setdefault(sequence.share, OrderedDict())

    def _remove(self, sequence: Sequence) -> None:
        queue = self._waiting.get(sequence.share)
        if queue is not None:
            queue.pop(sequence.id, None)
            if not queue:
                del self._waiting[sequence.share]

    def _forget_idle(self) -> None:
        """Idle shares' counters matter only while someone is busy below them; drop them all when nobody is."""
        if not self._present:
            self._served.clear()
