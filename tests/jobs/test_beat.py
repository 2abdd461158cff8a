"""beat goes on after the clock was set back, whether it ran meanwhile or not."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.conf import settings

from jobs.beat import Scheduler


class Noting(Scheduler):
    """The real one, which notes what it would send."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sent: list[str] = []
        super().__init__(*args, **kwargs)

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> None:
        self.sent.append(entry.name)

    @property
    def producer(self) -> None:
        return None


@pytest.fixture
def app() -> Celery:
    made = Celery(set_as_current=False)
    made.conf.update(timezone="UTC", beat_schedule={name: {"task": name, "schedule": 5.0} for name in "abc"})
    return made


def started(app: Celery, file: Path) -> Noting:
    return Noting(app, schedule_filename=str(file))


def age(scheduler: Noting, by: timedelta) -> None:
    """Every last run was so long ago."""
    for entry in scheduler.schedule.values():
        entry.last_run_at -= by
    scheduler._heap = None


def turn(scheduler: Noting, times: int = 8) -> list[str]:
    for _ in range(times):
        scheduler.tick()
    sent, scheduler.sent = sorted(scheduler.sent), []
    return sent


def test_last_runs_in_the_future_are_taken_for_now_when_the_file_is_read(app: Celery, tmp_path: Path) -> None:
    before = started(app, tmp_path / "schedule")
    age(before, -timedelta(days=1))
    before.close()
    after = started(app, tmp_path / "schedule")
    assert turn(after) == []
    age(after, timedelta(seconds=6))
    assert turn(after) == ["a", "b", "c"]
    after.close()


def test_a_clock_that_is_set_back_while_it_runs_stops_nothing(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = started(app, tmp_path / "schedule")
    real, moved = time.time, [0.0]
    monkeypatch.setattr("jobs.beat.time.time", lambda: real() + moved[0])
    scheduler.tick()
    age(scheduler, -timedelta(hours=1))  # as they look from
    moved[0] = -3600.0  # an hour before
    assert turn(scheduler) == []
    age(scheduler, timedelta(seconds=6))
    assert turn(scheduler) == ["a", "b", "c"]
    scheduler.close()


def test_it_is_the_one_that_beat_uses() -> None:
    assert f"{Scheduler.__module__}:{Scheduler.__qualname__}" == settings.CELERY_BEAT_SCHEDULER


def test_what_beat_asks_for_in_vain_does_not_pile_up() -> None:
    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        assert entry["schedule"] <= entry["options"]["expires"] <= max(10.0, entry["schedule"])
