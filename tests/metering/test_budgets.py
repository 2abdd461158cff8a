"""Budgets hold: however many requests come at once, whoever dies, and whenever the clock strikes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from apikeys.models import Scope
from apikeys.services import issue
from audit.services import SYSTEM
from metering import budgets, ledger
from metering.errors import BudgetExceeded
from metering.models import Account, Budget, Call, Outcome
from metering.services import change_budget, create_budget, delete_budget
from tenants.isolation import within
from tenants.models import Tenant
from tests.database import web_role
from webhooks.models import Delivery, Endpoint

Calls = Callable[..., Call]
Admit = Callable[..., Call]


@pytest.fixture
def admit(call_of: Calls) -> Admit:
    """admit(acme, 40): a call that has taken room for 40 tokens, and used none yet. Raises BudgetExceeded."""

    def admitted(tenant: Tenant, tokens: int, **fields: Any) -> Call:
        call = call_of(tenant, prompt=0, completion=0, outcome=Outcome.OPEN, **fields)
        budgets.reserve(call, budgets.rooms(tenant.pk, call.key, call.started_at), tokens)
        return call

    return admitted


def end(call: Call, used: int, outcome: Outcome = Outcome.FINISHED) -> None:
    call.prompt, call.completion, call.outcome = used, 0, outcome
    ledger.write([call])


def state(tenant: Tenant) -> list[tuple[int, int]]:
    """Used and reserved, by account."""
    accounts = Account.objects.filter(budget__tenant=tenant).order_by("pk")
    return list(accounts.values_list("used", "reserved"))


def check_law() -> None:
    """Every account holds what its calls under way have taken and what those that are over have used."""
    for account in Account.objects.all():
        calls = [call for call in Call.objects.all() if account.pk in call.accounts]
        assert account.reserved == sum(call.reserved for call in calls if call.outcome == Outcome.OPEN)
        assert account.used == sum(call.tokens for call in calls if call.outcome != Outcome.OPEN)


def test_room_is_taken_before_and_settled_after(acme: Tenant, globex: Tenant, admit: Admit) -> None:
    create_budget(acme, period="day", tokens=100, actor=SYSTEM)
    first = admit(acme, 60)
    assert state(acme) == [(0, 60)]
    with pytest.raises(BudgetExceeded):
        admit(acme, 41)
    second = admit(acme, 40)
    admit(globex, 10_000)  # a stranger's requests are not acme's business
    end(first, 15)
    end(second, 3, Outcome.FAILED)
    end(first, 60)  # told once more
    assert state(acme) == [(18, 0)]
    check_law()


def test_a_request_that_is_refused_leaves_nothing_behind(acme: Tenant, admit: Admit) -> None:
    create_budget(acme, period="month", tokens=1_000, actor=SYSTEM)
    create_budget(acme, period="day", tokens=10, actor=SYSTEM)
    with pytest.raises(BudgetExceeded):
        admit(acme, 11)
    assert (state(acme), Call.objects.count()) == ([(0, 0), (0, 0)], 0)


def test_a_key_s_budget_is_the_key_s_and_the_tenant_s_everybody_s(acme: Tenant, admit: Admit) -> None:
    key, _ = issue(acme, name="app", scopes=[Scope.INFERENCE], actor=SYSTEM)
    create_budget(acme, period="day", tokens=100, actor=SYSTEM)
    create_budget(acme, period="day", tokens=30, key=key.pk, actor=SYSTEM)
    with pytest.raises(BudgetExceeded, match="this key's budget"):
        admit(acme, 31, key=key.pk)
    admit(acme, 30, key=key.pk)
    with pytest.raises(BudgetExceeded, match="your budget"):
        admit(acme, 71)
    admit(acme, 70)
    assert sorted(state(acme)) == [(0, 30), (0, 100)]


@pytest.mark.django_db(transaction=True)
def test_fifty_requests_at_once_never_take_more_than_there_is(acme: Tenant, globex: Tenant, call_of: Calls) -> None:
    """Some end in time, some die; whatever happens, no account ever holds more than its budget."""
    for period in ("day", "month"):
        create_budget(acme, period=period, tokens=100, actor=SYSTEM)
    create_budget(globex, period="day", tokens=10**6, actor=SYSTEM)
    rooms = {tenant.pk: budgets.rooms(tenant.pk, UUID(int=1)) for tenant in (acme, globex)}
    together, admitted, failures = threading.Barrier(50), list[Call](), list[BaseException]()

    def work(number: int) -> None:
        tenant = globex if number % 10 == 0 else acme
        call = call_of(tenant, prompt=0, completion=0, outcome=Outcome.OPEN)
        try:
            together.wait()
            budgets.reserve(call, rooms[tenant.pk], 20)
            admitted.append(call)
            if number % 3:
                end(call, 7)
        except BudgetExceeded:
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(used + reserved <= 100 for used, reserved in state(acme))
    own = [call for call in admitted if call.tenant_id == acme.pk]
    assert 5 <= len(own) <= 14
    assert len(admitted) - len(own) == 5
    check_law()


DIES = """
import os, signal, uuid, django
django.setup()
from metering import budgets
from metering.models import Call
tenant, key = uuid.UUID(os.environ["TENANT"]), uuid.UUID(int=1)
call = Call(tenant_id=tenant, key=key, request_id="killed", base="tiny")
budgets.reserve(call, budgets.rooms(tenant, key), 80)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.django_db(transaction=True)
def test_what_a_killed_process_had_taken_comes_back(acme: Tenant, admit: Admit) -> None:
    create_budget(acme, period="day", tokens=100, actor=SYSTEM)
    url = settings.LORAYARD.database_url.replace("/lorayard?", f"/{connection.settings_dict['NAME']}?")
    path = os.pathsep.join(sys.path)
    told = {**os.environ, "DATABASE_URL": url, "TENANT": str(acme.pk), "PYTHONPATH": path}
    killed = subprocess.run([sys.executable, "-c", DIES], env=told, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert state(acme) == [(0, 80)]
    with pytest.raises(BudgetExceeded):
        admit(acme, 30)
    assert ledger.close_lost() == 0  # it might only be slow
    assert ledger.close_lost(timezone.now() + ledger.LEASE) == 1
    assert state(acme) == [(0, 0)]
    assert Call.objects.get().outcome == Outcome.LOST
    end(admit(acme, 100), 1)
    check_law()


def test_a_lost_call_counts_what_was_noted_of_it_and_its_process_can_add_nothing(acme: Tenant, admit: Admit) -> None:
    create_budget(acme, period="day", tokens=100, actor=SYSTEM)
    call = admit(acme, 80)
    call.prompt, call.completion = 10, 5
    ledger.write([call])
    assert state(acme) == [(0, 80)]
    ledger.close_lost(timezone.now() + 2 * ledger.LEASE)
    assert state(acme) == [(15, 0)]
    end(call, 70)
    assert state(acme) == [(15, 0)]
    check_law()


def test_a_new_period_begins_with_all_of_it_and_old_calls_count_in_the_old(acme: Tenant, admit: Admit) -> None:
    create_budget(acme, period="day", tokens=100, actor=SYSTEM)
    create_budget(acme, period="month", tokens=150, actor=SYSTEM)
    night = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
    late = admit(acme, 100, started_at=night)
    with pytest.raises(BudgetExceeded):
        admit(acme, 1, started_at=night)
    known = budgets.rooms(acme.pk, late.key, night)  # as a web process remembers it
    early = admit(acme, 0, started_at=night)
    early.started_at, early.pk = night + timedelta(seconds=1), UUID(int=7)
    budgets.reserve(early, known, 90)
    end(late, 80)
    accounts = {
        (account.budget.period, f"{account.starts_on}"): (account.used, account.reserved)
        for account in Account.objects.select_related("budget")
    }
    assert accounts == {
        ("day", "2026-01-31"): (80, 0),
        ("month", "2026-01-01"): (80, 0),
        ("day", "2026-02-01"): (0, 90),
        ("month", "2026-02-01"): (0, 90),
    }


def test_a_refusal_says_when_to_come_again(acme: Tenant, admit: Admit) -> None:
    create_budget(acme, period="day", tokens=100, actor=SYSTEM)
    running = admit(acme, 70)
    with pytest.raises(BudgetExceeded, match="30 of 100 left while other requests run") as while_others_run:
        admit(acme, 40)
    assert (while_others_run.value.final, while_others_run.value.retry_after) == (False, 5)
    end(running, 70)
    with pytest.raises(BudgetExceeded, match="30 of 100 left") as spent:
        admit(acme, 40)
    until = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    assert spent.value.final
    assert abs(spent.value.retry_after - (until - datetime.now(UTC)).total_seconds()) < 5


@pytest.fixture
def told(acme: Tenant, globex: Tenant) -> Callable[[], list[tuple[str, int]]]:
    """told(): the budget events on their way to acme, each with what was used then. The stranger listens too."""
    for tenant in (acme, globex):
        Endpoint.objects.create(tenant=tenant, url="https://example.com/hook", events=["budget.*"])

    def events() -> list[tuple[str, int]]:
        assert not Delivery.objects.for_tenant(globex).exists()
        return [(row.event, row.data["used"]) for row in Delivery.objects.for_tenant(acme).order_by("created_at")]

    return events


def test_a_tenant_is_told_once_at_80_percent_and_once_when_it_is_used_up(
    acme: Tenant, admit: Admit, told: Callable[[], list[tuple[str, int]]]
) -> None:
    budget = create_budget(acme, period="day", tokens=100, actor=SYSTEM)
    with suppress(BudgetExceeded):
        admit(acme, 101)  # would never fit: says nothing of what was used
    end(admit(acme, 79), 79)
    assert told() == []
    running = admit(acme, 20)
    with suppress(BudgetExceeded):
        admit(acme, 5)  # others stand in the way, for now
    assert told() == []
    end(running, 1)
    end(admit(acme, 10), 10)
    assert told() == [("budget.threshold", 80)]
    for _ in range(2):
        with pytest.raises(BudgetExceeded):
            admit(acme, 11)
    assert told() == [("budget.threshold", 80), ("budget.exceeded", 90)]
    data = Delivery.objects.latest("created_at").data
    assert (data["budget"], data["period"], data["tokens"], data["key"]) == (str(budget.pk), "day", 100, None)
    end(admit(acme, 90, started_at=timezone.now() + timedelta(days=1)), 90)
    assert told()[2:] == [("budget.threshold", 90)]


def test_a_new_limit_holds_at_once_and_is_told_of_anew(
    acme: Tenant, admit: Admit, told: Callable[[], list[tuple[str, int]]]
) -> None:
    budget = create_budget(acme, period="day", tokens=100, actor=SYSTEM)
    end(admit(acme, 90), 90)
    change_budget(budget, tokens=200, actor=SYSTEM)
    admit(acme, 100)
    change_budget(budget, tokens=95, actor=SYSTEM)
    with pytest.raises(BudgetExceeded):
        admit(acme, 1)
    assert told() == [("budget.threshold", 90), ("budget.threshold", 90)]


def test_a_budget_deleted_meanwhile_holds_nobody_back(acme: Tenant, call_of: Calls) -> None:
    budget = create_budget(acme, period="day", tokens=10, actor=SYSTEM)
    month = create_budget(acme, period="month", tokens=1_000, actor=SYSTEM)
    call = call_of(acme, prompt=0, outcome=Outcome.OPEN)
    known = budgets.rooms(acme.pk, call.key)
    delete_budget(budget, actor=SYSTEM)
    budgets.reserve(call, known, 20)
    assert (len(known), len(call.accounts)) == (2, 1)
    delete_budget(month, actor=SYSTEM)
    end(call, 20)
    assert Call.objects.get().tokens == 20


def test_the_web_takes_room_for_the_tenant_in_scope_and_sees_no_other_budget(
    acme: Tenant, globex: Tenant, admit: Admit
) -> None:
    strange = create_budget(globex, period="day", tokens=10, actor=SYSTEM)
    with web_role():
        with within(acme.pk):
            create_budget(acme, period="day", tokens=100, actor=SYSTEM)
            assert not Budget.objects.filter(pk=strange.pk).exists()
        end(admit(acme, 60), 50)
        assert Account.objects.count() == 0
        with within(acme.pk):
            assert state(acme) == [(50, 0)]
