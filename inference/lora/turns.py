"""Knows when a loading thread may work: one at a time, each in its turn, and little of the time while steps run; never
what it does.

A step reads its weights about as fast as memory gives them, so whoever copies beside it makes it wait. Rests that are
as short as the work between them slow all steps a little and none much.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 0.2  # of the time that loads may work while steps run
SLICE = 0.002  # seconds of work between two rests
NAP = 0.02  # seconds between two looks whether steps still run


class Turns:
    """`busy()`: whether steps run. Who waits longest is next, so that long work in short turns delays nobody else's."""

    def __init__(self, busy: Callable[[], bool] = lambda: False, share: float = SHARE) -> None:
        self._busy = busy
        self._pause = 1 / share - 1  # seconds of rest for one of work
        self._lock = threading.Lock()
        self._line: deque[threading.Lock] = deque()
        self._taken = False
        self._done = threading.local()  # seconds of the thread's work that have been counted
        self._work = 0.0  # seconds since the last rest

    @contextmanager
    def take(self, *, hurry: bool = False) -> Iterator[None]:
        """Nobody else has a turn within the block, nor while its work is rested from; who is in a hurry does not rest.

        Not to be nested.
        """
        self._wait()
        try:
            yield
        finally:
            self._rest(hurry)
            self._leave()

    def _wait(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._line.append(gate)
        gate.acquire()  # released by who leaves

    def _leave(self) -> None:
        with self._lock:
            if self._line:
                self._line.popleft().release()
            else:
                self._taken = False

    def _rest(self, hurry: bool) -> None:
        """By the time that the thread was on a core: how long it waited for one is no work."""
        now = time.thread_time()
        self._work += now - getattr(self._done, "seconds", 0.0)
        self._done.seconds = now
        if hurry or not self._busy():
            self._work = 0.0
        elif self._work >= SLICE:
            end = time.monotonic() + self._work * self._pause
            self._work = 0.0
            while (left := end - time.monotonic()) > 0 and self._busy():
                time.sleep(min(left, NAP))
