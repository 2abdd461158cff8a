"""Who is at work is seen from other sessions, and gone with the session; a clock that was set back hides no work."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection
from django.db.models.functions import Now

from dispatch import at_work, attended, deserted, long_ago, over
from dispatch.presence import _key
from jobs.models import Tick

WORK, OTHER = UUID("ffffffff-ffff-4fff-8fff-ffffffffffff"), uuid.uuid4()
Elsewhere = Callable[[UUID], psycopg.Connection[Any]]


@pytest.fixture
def elsewhere(db: None) -> Iterator[Elsewhere]:
    """elsewhere(work): a session of another process that is at work on it."""
    opened = []

    def start(work: UUID) -> psycopg.Connection[Any]:
        told = connection.get_connection_params()
        names = ("dbname", "user", "host")
        session = psycopg.connect(**{name: told[name] for name in names}, autocommit=True)
        opened.append(session)
        session.execute("SELECT pg_advisory_lock_shared(%s)", [_key(work)])
        return session

    yield start
    for session in opened:
        session.close()


def test_work_is_attended_while_somebody_is_at_it_and_deserted_when_the_session_ends(elsewhere: Elsewhere) -> None:
    assert not attended(WORK)
    session = elsewhere(WORK)
    assert attended(WORK)
    assert deserted([WORK, OTHER]) == [OTHER]
    session.close()
    assert until_deserted(WORK)


def until_deserted(work: UUID) -> bool:
    """The server needs a moment to see that its client is gone."""
    import time

    deadline = time.monotonic() + 30
    while attended(work) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not attended(work)


def test_two_may_be_at_the_same_and_nobody_takes_himself_for_another(elsewhere: Elsewhere) -> None:
    with at_work(WORK):
        assert not attended(WORK)
        session = elsewhere(WORK)
        assert attended(WORK)
        session.close()
    assert until_deserted(WORK)


def test_what_is_left_is_left_even_by_a_failure(db: None) -> None:
    with attempted(), at_work(WORK):
        raise LookupError
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
        assert cursor.fetchone() == (0,)


@contextmanager
def attempted() -> Iterator[None]:
    with pytest.raises(LookupError):
        yield


@pytest.mark.parametrize(("ago", "found"), [(-120, True), (-30, False), (5, False), (30, True)])
def test_moments_are_long_ago_by_the_databases_clock_or_where_no_moment_can_lie(
    db: None, ago: float, found: bool
) -> None:
    Tick.objects.create(kind="x", at=Now() - timedelta(seconds=ago))
    assert Tick.objects.filter(long_ago("at", timedelta(seconds=20))).exists() == found


@pytest.mark.parametrize(("ahead", "found"), [(-1, True), (5, False), (60, False), (120, True), (3600, True)])
def test_a_term_is_over_at_its_end_or_where_it_can_not_end(db: None, ahead: float, found: bool) -> None:
    Tick.objects.create(kind="x", at=Now() + timedelta(seconds=ahead))
    assert Tick.objects.filter(over("at", timedelta(seconds=20))).exists() == found
