"""Knows how jobs that may be slow or hang run beside the step loop; never what they do."""

import math
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
GivenUp = Callable[[], bool]

LOST = 64


class Threads:
    """At most `limit` jobs at a time, each in a daemon thread of its own; the others wait in line and may be cancelled.

    A job that takes longer than `timeout` seconds fails with `late(timeout)` and its place is taken by the next. A
    thread can't be ended, so it goes on alone; `given_up()`, which every job is called with, tells it. While LOST such
    threads are not back, no job is begun: it is late at once.
    """

    def __init__(
        self,
        limit: int,
        timeout: float = math.inf,
        late: Callable[[float], Exception] = lambda seconds: TimeoutError(f"{seconds:g} s"),
        *,
        nice: int = 0,
        name: str = "job",
    ) -> None:
        self._limit = limit
        self._timeout = timeout
        self._late = late
        self._nice = nice
        self._name = name
        self._lock = threading.Lock()
        self._line: deque[tuple[Future[Any], Callable[[GivenUp], Any]]] = deque()
        self._busy: set[Future[Any]] = set()
        self._lost = 0

    def submit(self, job: Callable[[GivenUp], T]) -> Future[T]:
        future: Future[T] = Future()
        if self._lost >= LOST:
            future.set_exception(self._late(self._timeout))
        else:
            with self._lock:
                self._line.append((future, job))
            self._begin()
        return future

    def close(self) -> None:
        """Begin no other job. What runs ends with the process at the latest."""
        with self._lock:
            for future, _ in self._line:
                future.cancel()
            self._line.clear()

    def _begin(self) -> None:
        with self._lock:
            while self._line and len(self._busy) < self._limit:
                future, job = self._line.popleft()
                if future.set_running_or_notify_cancel():
                    self._busy.add(future)
                    threading.Thread(target=self._run, args=(future, job), name=self._name, daemon=True).start()

    def _run(self, future: Future[Any], job: Callable[[GivenUp], Any]) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        timer = threading.Timer(min(self._timeout, threading.TIMEOUT_MAX), self._expire, [future])
        timer.daemon = True
        if self._timeout < math.inf:
            timer.start()
        try:
            result = job(future.done)
        except BaseException as error:
            self._finish(future, partial(future.set_exception, error))
        else:
            self._finish(future, partial(future.set_result, result))
        finally:
            timer.cancel()

    def _finish(self, future: Future[Any], settle: Callable[[], None]) -> None:
        try:
            settle()
        except InvalidStateError:  # it had expired
            with self._lock:
                self._lost -= 1
        else:
            self._leave(future)

    def _expire(self, future: Future[Any]) -> None:
        with self._lock:
            self._lost += 1
        try:
            future.set_exception(self._late(self._timeout))
        except InvalidStateError:  # it has just ended
            with self._lock:
                self._lost -= 1
        else:
            self._leave(future)

    def _leave(self, future: Future[Any]) -> None:
        with self._lock:
            self._busy.discard(future)
        self._begin()
