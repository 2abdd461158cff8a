"""Turns in background work: by tenant, least served first, with none saved up by idling and none lost by waiting."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from uuid import UUID, uuid4

import pytest
from django.utils import timezone

from jobs import turns
from jobs.models import Share
from tenants.models import Tenant


class Desk:
    """A line of jobs that a test fills; work on one takes `seconds` of a clock of the test's own."""

    def __init__(self) -> None:
        self.jobs: list[turns.Job] = []
        self.served: list[Tenant] = []
        self.seconds = 10.0
        self.now = 0.0
        self.asked: list[bool] = []
        self.line = turns.Line("test", lambda: list(self.jobs), self._work)
        self._order: Iterator[int] = count()

    def wait(self, tenant: Tenant, jobs: int = 1) -> None:
        for _ in range(jobs):
            since = timezone.now() + timedelta(seconds=next(self._order))
            self.jobs.append((uuid4(), tenant.pk, tenant.weight, since))

    def serve(self, shifts: int = 1) -> list[str]:
        for _ in range(shifts):
            turns.serve(self.line)
        return [tenant.slug for tenant in self.served[-shifts:]]

    def _work(self, job: UUID, others_wait: Callable[[], bool]) -> None:
        done = next(waiting for waiting in self.jobs if waiting[0] == job)
        self.asked.append(others_wait())
        self.jobs.remove(done)
        self.served.append(Tenant.objects.get(pk=done[1]))
        self.now += self.seconds


@pytest.fixture
def desk(db: None, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk()
    monkeypatch.setattr("jobs.turns.time.monotonic", lambda: desk.now)
    return desk


def test_a_tenant_of_one_job_waits_for_one_shift_of_a_tenant_of_many(desk: Desk, acme: Tenant, globex: Tenant) -> None:
    desk.wait(acme, 20)
    assert desk.serve() == ["acme"]
    desk.wait(globex)
    assert desk.serve() == ["globex"]
    assert desk.serve(3) == ["acme"] * 3


def test_tenants_of_many_jobs_have_equal_time_whatever_a_shift_takes(desk: Desk, acme: Tenant, globex: Tenant) -> None:
    time = Counter[str]()
    desk.wait(acme, 40)
    desk.wait(globex, 40)
    for _ in range(30):
        desk.seconds = 30.0 if next(iter(desk.jobs))[1] == acme.pk else 10.0
        before = desk.now
        [served] = desk.serve()
        time[served] += int(desk.now - before)
    assert abs(time["acme"] - time["globex"]) <= 30


def test_twice_the_weight_is_twice_the_shifts(desk: Desk, acme: Tenant, globex: Tenant) -> None:
    acme.weight = 2.0
    desk.wait(acme, 40)
    desk.wait(globex, 40)
    assert Counter(desk.serve(30)) == {"acme": 20, "globex": 10}


def test_nobody_saves_up_turns_by_asking_for_nothing(desk: Desk, acme: Tenant, globex: Tenant) -> None:
    desk.wait(globex)
    desk.wait(acme, 30)
    desk.serve(21)
    desk.wait(globex, 20)
    assert Counter(desk.serve(10)) == {"globex": 5, "acme": 5}


def test_a_job_is_told_whether_another_tenant_s_waits(desk: Desk, acme: Tenant, globex: Tenant) -> None:
    desk.wait(acme, 2)
    desk.serve()
    desk.wait(globex)
    desk.serve(2)
    assert desk.asked == [False, True, False]


def test_a_shift_that_breaks_off_counts_and_an_empty_line_is_nobody_s_turn(desk: Desk, acme: Tenant) -> None:
    turns.serve(desk.line)
    assert not Share.objects.exists()
    desk.wait(acme)

    def broken(job: UUID, others_wait: Callable[[], bool]) -> None:
        desk.now += 7.0
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the very one
        turns.serve(turns.Line("test", lambda: desk.jobs, broken))
    share = Share.objects.get()
    assert (share.tenant, share.start, share.end) == (acme, 0.0, 7.0)
