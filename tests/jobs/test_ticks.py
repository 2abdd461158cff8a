"""Periodic work that stops is seen to have stopped, whatever any clock says."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.db.models.functions import Now
from django.test import AsyncClient

from config import health
from gateway.database import query
from jobs import tasks, ticks
from jobs.models import Tick
from jobs.ticks import Watch
from tests.database import web_role

KIND = "tend_usage"


@pytest.fixture
def every_kind_is_done(db: None) -> None:
    for kind in ticks.intervals():
        ticks.note(kind)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """later(60): the monotonic clock is so much further."""
    began, moved = time.monotonic, [0.0]
    monkeypatch.setattr("jobs.ticks.time.monotonic", lambda: began() + moved[0])

    def move(seconds: float) -> None:
        moved[0] += seconds

    return move


def set_back(kind: str, by: timedelta) -> None:
    Tick.objects.filter(kind=kind).update(at=Now() - by)


@pytest.mark.django_db
def test_a_periodic_task_notes_its_end_and_a_failed_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.tend_usage.apply(throw=True)
    first = Tick.objects.get(kind=KIND).at
    monkeypatch.setattr("jobs.tasks.ledger.sum_up", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tasks.tend_usage.apply(throw=True)
    assert Tick.objects.get(kind=KIND).at == first
    monkeypatch.undo()
    tasks.tend_usage.apply(throw=True)
    assert Tick.objects.get(kind=KIND).at >= first


def test_every_kind_that_beat_asks_for_is_a_task_that_notes_its_end() -> None:
    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        task = getattr(tasks, entry["task"].rpartition(".")[2])
        assert task.name == entry["task"]
        assert task.run.__qualname__ == task.__name__
        assert hasattr(task.run, "__wrapped__"), f"{task.name} is not periodic"


def test_what_is_not_done_any_more_is_overdue_and_nothing_else_is(every_kind_is_done: None, later: Any) -> None:
    watch = Watch()
    later(ticks.SLACK + 1)
    set_back(KIND, timedelta(minutes=10))
    assert watch.overdue() == [KIND]
    ticks.note(KIND)
    assert watch.overdue() == []


def test_a_time_in_the_future_hides_nothing(every_kind_is_done: None, later: Any) -> None:
    watch = Watch()
    set_back(KIND, -timedelta(days=1))  # it was done before the clock was set back
    watch.ages()
    later(10)
    assert watch.ages()[KIND] == pytest.approx(10, abs=5)
    later(200)
    assert KIND in watch.overdue()


def test_what_was_never_done_is_overdue_once_it_had_its_time(db: None, later: Any) -> None:
    watch = Watch()
    assert watch.overdue() == []
    later(100)
    assert KIND in watch.overdue()
    assert "verify_audit" not in watch.overdue()


def test_a_process_that_has_just_started_does_not_complain(every_kind_is_done: None, later: Any) -> None:
    set_back(KIND, timedelta(days=7))  # the machine was off
    watch = Watch()
    assert watch.overdue() == []
    later(ticks.SLACK + 1)
    assert watch.overdue() == [KIND]


def test_the_webs_role_may_look_and_not_write(every_kind_is_done: None) -> None:
    with web_role(), connection.cursor() as cursor:
        assert Watch().ages()
        cursor.execute("SELECT has_table_privilege(current_user, 'jobs_tick', 'UPDATE')")
        assert cursor.fetchone() == (False,)


@pytest.mark.django_db(transaction=True)
async def test_readyz_and_metrics_tell_what_is_overdue(
    async_client: AsyncClient, engine: str, later: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "WATCH", Watch())
    later(ticks.SLACK + 40)
    for kind in ticks.intervals():
        if kind != "tick_rollouts":
            await query(ticks.note, kind)
    answer = await async_client.get("/readyz")
    assert (answer.status_code, answer.json()["periodic"]) == (503, "down")
    assert answer.json()["overdue"] == ["tick_rollouts"]
    assert (await async_client.get("/readyz?exclude=periodic")).status_code == 200
    text = (await async_client.get("/metrics")).content.decode()
    assert 'lorayard_periodic_age_seconds{kind="tick_rollouts"}' in text
