"""Knows how long a query may be waited for, and which connections of the pool are kept for whom; knows no query.

A server that hangs accepts connections and says nothing, so no time-out of its own helps: the wait on our side ends.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout

DEFAULT = 30.0  # seconds that a pooled process, which is one that serves requests, waits for an answer of the server's
GETTING = 2.0  # seconds that anybody waits for a connection

_until: ContextVar[float | None] = ContextVar("database_until", default=None)


class ServerSilent(psycopg.OperationalError):
    """The server did not answer in time. The connection is of no use any more."""


class NoConnection(psycopg.OperationalError):
    """All connections that requests of this kind may have are taken."""


@contextmanager
def within(until: float) -> Iterator[None]:
    """In here no query is waited for beyond this moment of the monotonic clock."""
    token = _until.set(until)
    try:
        yield
    finally:
        _until.reset(token)


def in_time() -> bool:
    """Whether the work at hand was promised by a certain moment: `within` is around it."""
    return _until.get() is not None


class Connection(psycopg.Connection[Any]):
    """Every wait for the server ends: at the moment that `within` set, else after DEFAULT."""

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        until = _until.get()
        left = DEFAULT if until is None else max(0.0, until - time.monotonic())
        if timeout is not None and timeout < left:
            return super().wait(gen, interval, timeout)  # somebody else's, who knows what it means
        try:
            return super().wait(gen, interval, left)
        except _WaitTimeout:
            self.pgconn.finish()
            raise ServerSilent("the database did not answer in time") from None


class Share:
    """So many connections of the pool, for those who promised no moment: the others' are always left."""

    def __init__(self, most: int) -> None:
        self._places = threading.BoundedSemaphore(most)

    def take(self) -> None:
        """Raises NoConnection after GETTING seconds."""
        if not self._places.acquire(timeout=GETTING):
            raise NoConnection("all connections are in use")

    def give_back(self) -> None:
        self._places.release()
