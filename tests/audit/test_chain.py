"""The chain, attacked by somebody who owns the database and can switch the triggers off."""

import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from audit.models import Action, Chain, Event
from audit.services import SYSTEM, Actor, record
from audit.verification import verify
from tenants.models import Tenant
from tests.audit.conftest import Sql, kinds, write


def test_untouched_chains_verify(acme: Tenant, globex: Tenant) -> None:
    write(acme, 5)
    write(globex, 3)
    write(None, 2)
    assert verify() == []
    assert [event.number for event in Event.objects.for_tenant(acme).order_by("number")] == [1, 2, 3, 4, 5, 6]


def test_awkward_data_verifies_as_it_comes_back_from_the_database(acme: Tenant) -> None:
    data = {
        "float": 1e22,
        "small": 1.10,
        "big": 2**70,
        "text": 'é\u2028"\\',
        "none": None,
        "nested": [{"b": 1, "a": 2}],
    }
    with transaction.atomic():
        record(Action.TENANT_CHANGED, tenant=acme, actor=SYSTEM, target="acme", data=data)
    assert verify(acme) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("target", "key:other"),
        ("actor_id", "mallory"),
        ("data", "{}"),
        ("action", "key:revoked"),
        ("address", "::1"),
    ],
)
def test_an_edited_event_is_found(acme: Tenant, globex: Tenant, sql: Sql, column: str, value: str) -> None:
    write(acme, 3)
    sql(f"UPDATE audit_event SET {column} = %s WHERE tenant_id = %s AND number = 3", value, acme.pk)
    assert kinds(acme) == ["edited"]
    assert kinds(globex) == []


def test_an_edited_event_with_its_hash_made_anew_is_found(acme: Tenant, sql: Sql) -> None:
    write(acme, 3)
    event = Event.objects.get(tenant=acme, number=2)
    event.target = "key:other"
    sql("UPDATE audit_event SET target = %s, hash = %s WHERE id = %s", event.target, event.compute_hash(), event.pk)
    assert kinds(acme) == ["reordered"]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_deleted_event_is_found_be_it_first_middle_or_last(acme: Tenant, sql: Sql, number: int) -> None:
    write(acme, 3)
    sql("DELETE FROM audit_event WHERE tenant_id = %s AND number = %s", acme.pk, number)
    assert kinds(acme) == ["missing"]


def test_two_events_that_changed_places_are_found(acme: Tenant, sql: Sql) -> None:
    write(acme, 4)
    sql("UPDATE audit_event SET number = number - 5 WHERE tenant_id = %s AND number IN (2, 3)", acme.pk)
    sql("UPDATE audit_event SET number = -number WHERE tenant_id = %s AND number < 0", acme.pk)
    assert "reordered" in kinds(acme)


def test_an_event_put_in_behind_the_head_is_found(acme: Tenant, sql: Sql) -> None:
    write(acme, 2)
    chain = Chain.objects.get(pk=acme.pk)
    write(acme, 1)
    sql("UPDATE audit_chain SET length = %s, head = %s WHERE id = %s", chain.length, chain.head, chain.pk)
    assert kinds(acme) == ["inserted"]


def test_a_chain_whose_events_are_all_gone_is_found(acme: Tenant, sql: Sql) -> None:
    sql("DELETE FROM audit_event WHERE tenant_id = %s", acme.pk)
    assert kinds(acme) == ["missing"]


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_event SET target = 'x'", "DELETE FROM audit_event", "TRUNCATE audit_event CASCADE"],
)
def test_events_can_only_be_appended(acme: Tenant, statement: str) -> None:
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert Event.objects.for_tenant(acme).count() == 1


@pytest.mark.django_db(transaction=True)
def test_an_event_outside_a_transaction_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        record(Action.KEY_ISSUED, tenant=None, actor=SYSTEM, target="key:1")


@pytest.mark.django_db(transaction=True)
def test_an_event_goes_with_the_transaction_that_it_records(acme: Tenant) -> None:
    with transaction.atomic():
        record(Action.KEY_ISSUED, tenant=acme, actor=SYSTEM, target="key:1")
        transaction.set_rollback(True)
    write(acme, 1)
    assert Event.objects.for_tenant(acme).count() == 2
    assert verify() == []


@pytest.mark.django_db(transaction=True)
def test_fifty_writers_at_once_neither_deadlock_nor_fork_the_chain(acme: Tenant) -> None:
    start, faults = threading.Barrier(50), []

    def work() -> None:
        try:
            start.wait(30)
            write(acme, 4)
        except Exception as error:
            faults.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert faults == []
    assert Chain.objects.get(pk=acme.pk).length == 201
    assert Event.objects.for_tenant(acme).count() == 201
    assert verify() == []


def test_who_and_from_where_are_kept(acme: Tenant) -> None:
    actor = Actor("key", "k1", address="192.0.2.7", request_id="req_1")
    with transaction.atomic():
        event = record(Action.KEY_REVOKED, tenant=acme, actor=actor, target="key:k2")
    event.refresh_from_db()
    assert (event.actor_kind, event.actor_id, event.address, event.request_id) == ("key", "k1", "192.0.2.7", "req_1")


def test_the_command_fails_on_a_fault_and_counts_what_is_whole(
    acme: Tenant, sql: Sql, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("verify_audit")
    assert "1 events in 1 chains" in capsys.readouterr().out
    sql("UPDATE audit_event SET target = 'x' WHERE tenant_id = %s", acme.pk)
    with pytest.raises(CommandError, match="1 faults"):
        call_command("verify_audit")
    assert "edited" in capsys.readouterr().err
