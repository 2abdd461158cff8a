"""Knows who is at work on what, by locks of PostgreSQL's that end with their session: no clock, no lease.

A worker that is killed loses its session at once, and with it the lock: whoever looks then sees the work deserted. A
worker that hangs keeps it, which is why leases are still needed beside it. Nothing is excluded by such a lock.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

from django.db import DatabaseError, connection

HELD = """
SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextmanager
def at_work(*what: UUID) -> Iterator[None]:
    """Show, for as long as this lasts and this process and its session live, that somebody is at work on these."""
    keys = sorted(map(_key, what))
    _each("SELECT pg_advisory_lock_shared(%s)", keys)
    try:
        yield
    finally:
        try:
            _each("SELECT pg_advisory_unlock_shared(%s)", keys)
        except DatabaseError:
            connection.close()  # which ends the session, if it is still there


def attended(what: UUID) -> bool:
    """Whether another session is at work on it."""
    return not deserted([what])


def deserted(these: Iterable[UUID]) -> list[UUID]:
    """Those of these that no other session is at work on."""
    with connection.cursor() as cursor:
        cursor.execute(HELD)
        held = {key for (key,) in cursor.fetchall()}
    return [each for each in these if _key(each) not in held]


def _key(what: UUID) -> int:
    """A lock's number: 64 bits, with a sign."""
    return int.from_bytes(UUID(str(what)).bytes[:8], signed=True)


def _each(statement: str, keys: Iterable[int]) -> None:
    with connection.cursor() as cursor:
        for key in keys:
            cursor.execute(statement, [key])
