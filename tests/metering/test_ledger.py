"""Each call is written once, by whomever and however often it is told of; and its day counts it once."""

import threading
from collections.abc import Callable
from copy import copy
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from metering import ledger
from metering.models import Call, DailyUsage, Outcome, Purpose
from tenants.isolation import within
from tenants.models import Tenant
from tests.database import web_role

Calls = Callable[..., Call]


def sums(tenant: Tenant) -> dict[str, int]:
    rows = DailyUsage.objects.for_tenant(tenant)
    names = ("requests", "failed", "prompt", "cached", "completion")
    return {name: sum(getattr(row, name) for row in rows) for name in names}


def test_a_call_told_of_twice_is_written_once(acme: Tenant, call_of: Calls) -> None:
    call = call_of(acme)
    ledger.write([call])
    again = copy(call)
    again.completion, again.outcome = 99, Outcome.FAILED
    ledger.write([again])
    assert [(row.tokens, row.outcome) for row in Call.objects.all()] == [(15, Outcome.FINISHED)]


def test_a_client_s_own_request_id_used_twice_hides_nothing(acme: Tenant, call_of: Calls) -> None:
    ledger.write([call_of(acme, request_id="mine"), call_of(acme, request_id="mine")])
    assert Call.objects.filter(request_id="mine").count() == 2


def test_a_call_that_goes_on_is_noted_and_then_ended(acme: Tenant, call_of: Calls) -> None:
    call = call_of(acme, completion=0, outcome=Outcome.OPEN)
    for said in (1, 7):
        call.completion = said
        ledger.write([call])
        assert Call.objects.get().completion == said
    call.completion, call.outcome, call.code = 9, Outcome.FAILED, "engine_down"
    ledger.write([call])
    call.outcome = Outcome.OPEN
    ledger.write([call])  # a note that comes late
    ended = Call.objects.get()
    assert (ended.completion, ended.outcome, ended.code) == (9, Outcome.FAILED, "engine_down")


def test_calls_of_a_process_that_died_are_lost_with_what_was_noted_of_them(acme: Tenant, call_of: Calls) -> None:
    silent, spoken = (call_of(acme, completion=3, outcome=Outcome.OPEN) for _ in range(2))
    ledger.write([silent, spoken])
    assert ledger.close_lost() == 0
    Call.objects.filter(pk=silent.pk).update(noted_at=timezone.now() - ledger.LEASE - timedelta(seconds=1))
    assert ledger.close_lost() == 1
    assert ledger.close_lost() == 0
    assert {row.pk: (row.outcome, row.tokens) for row in Call.objects.all()} == {
        silent.pk: (Outcome.LOST, 13),
        spoken.pk: (Outcome.OPEN, 13),
    }
    silent.outcome, silent.completion = Outcome.FINISHED, 50  # it was only slow: too late
    ledger.write([silent])
    assert Call.objects.get(pk=silent.pk).outcome == Outcome.LOST


def test_the_web_writes_calls_of_several_tenants_and_sees_only_those_in_scope(
    acme: Tenant, globex: Tenant, call_of: Calls
) -> None:
    with web_role():
        ledger.write([call_of(acme), call_of(globex)])
        assert not Call.objects.exists()
        with within(acme.pk):
            assert [row.tenant_id for row in Call.objects.all()] == [acme.pk]


def test_a_day_s_sums_count_each_call_once(acme: Tenant, globex: Tenant, call_of: Calls) -> None:
    night = datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
    ledger.write([call_of(acme, started_at=night, cached=4), call_of(acme, started_at=night + timedelta(seconds=2))])
    ledger.write([call_of(acme, started_at=night, outcome=Outcome.FAILED, completion=0), call_of(globex)])
    ledger.write([call_of(acme, outcome=Outcome.OPEN)])
    assert (ledger.sum_up(), ledger.sum_up()) == (4, 0)
    ledger.write([call_of(acme, started_at=night)])
    assert ledger.sum_up() == 1
    assert sums(acme) == {"requests": 4, "failed": 1, "prompt": 40, "cached": 4, "completion": 15}
    assert sums(globex)["requests"] == 1
    days = DailyUsage.objects.for_tenant(acme).order_by("day").values_list("day", "requests")
    assert list(days) == [(date(2026, 3, 1), 3), (date(2026, 3, 2), 1)]


def test_keys_adapters_and_purposes_are_summed_apart(acme: Tenant, call_of: Calls) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"adapter": ""},
        {"purpose": Purpose.SHADOW},
        {"key": "00000000-0000-0000-0000-000000000002"},
    ]
    ledger.write([call_of(acme, **kind) for kind in kinds for _ in range(2)])
    ledger.sum_up()
    assert [row.requests for row in DailyUsage.objects.for_tenant(acme)] == [2, 2, 2, 2]


def test_sums_stay_when_the_calls_are_forgotten(acme: Tenant, call_of: Calls) -> None:
    now = timezone.now()
    ledger.write([call_of(acme, started_at=now - timedelta(days=40)), call_of(acme, started_at=now)])
    keep = timedelta(days=30)
    assert ledger.forget(keep) == 0  # not summed yet
    ledger.sum_up()
    assert ledger.forget(keep) == 1
    assert sums(acme)["requests"] == 2
    assert ledger.forget(keep, now=now + timedelta(days=31)) == 1
    assert (sums(acme)["requests"], ledger.sum_up()) == (2, 0)


@pytest.mark.django_db(transaction=True)
def test_several_workers_that_sum_up_at_once_count_nothing_twice(acme: Tenant, call_of: Calls) -> None:
    for _ in range(20):
        ledger.write([call_of(acme) for _ in range(20)])

    def work() -> None:
        try:
            ledger.sum_up()
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums(acme)["requests"] == 400
