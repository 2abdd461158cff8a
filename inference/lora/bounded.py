"""Knows how much of a tier is used and what goes first; never what is kept."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Tally:
    """What a tier did: `loads` brought things in, which took `seconds` together."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts what is brought in within the block, if it ends well, and its time in any case."""
        started = time.monotonic()
        try:
            yield
            self.loads += 1
        finally:
            self.seconds += time.monotonic() - started


@dataclass
class _Kept(Generic[T]):
    thing: T
    size: int
    uses: int = 0


class Bounded(Generic[T]):
    """Things by digest, at most `limit` bytes of them; the least recently used that nobody uses makes room.

    Any thread may call. Only while everything else is in use may there be more than `limit`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tally = Tally()
        self._kept: OrderedDict[str, _Kept[T]] = OrderedDict()
        self._lock = threading.Lock()
        self._promised = 0

    @property
    def bytes(self) -> int:
        """Kept or promised."""
        with self._lock:
            return self._bytes

    def sizes(self) -> dict[str, int]:
        with self._lock:
            return {digest: kept.size for digest, kept in self._kept.items()}

    def get(self, digest: str, *, use: bool = False) -> T | None:
        """What is kept under this digest, now the most recently used; with `use` it stays until `done`."""
        with self._lock:
            kept = self._kept.get(digest)
            if kept is None:
                self.tally.misses += 1
                return None
            self.tally.hits += 1
            self._kept.move_to_end(digest)
            kept.uses += use
            return kept.thing

    def done(self, digest: str) -> None:
        with self._lock:
            if (kept := self._kept.get(digest)) is not None and kept.uses:
                kept.uses -= 1

    def promise(self, size: int) -> list[tuple[str, T]]:
        """Set room aside for something of `size` bytes; what had to go for it."""
        with self._lock:
            self._promised += size
            return self._fit()

    def withdraw(self, size: int) -> None:
        """Undo `promise`."""
        with self._lock:
            self._promised -= size

    def put(self, digest: str, thing: T, size: int, *, use: bool = False) -> list[tuple[str, T]]:
        """Keep a thing, unless it is larger than all that may be kept; what had to go for it."""
        with self._lock:
            if size > self.limit:
                return []
            before = self._kept.pop(digest, None)
            self._kept[digest] = _Kept(thing, size, int(use) + (before.uses if before else 0))
            return self._fit()

    def pop(self, digest: str) -> T | None:
        with self._lock:
            kept = self._kept.pop(digest, None)
            return None if kept is None else kept.thing

    @property
    def _bytes(self) -> int:
        return self._promised + sum(kept.size for kept in self._kept.values())

    def _fit(self) -> list[tuple[str, T]]:
        gone: list[tuple[str, T]] = []
        excess = self._bytes - self.limit
        for digest in [digest for digest, kept in self._kept.items() if not kept.uses]:
            if excess <= 0:
                break
            kept = self._kept.pop(digest)
            excess -= kept.size
            gone.append((digest, kept.thing))
        self.tally.evictions += len(gone)
        return gone
