"""What a role may do that has every grant on the tables, but doesn't own them: append, and nothing else."""

from collections.abc import Iterator

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from audit import checkpoints
from audit.models import Chain, Event, Segment
from audit.verification import verify
from tenants.models import Tenant
from tests.audit.conftest import write

TABLES = ("event", "chain", "checkpoint", "leaf", "segment")


@pytest.fixture
def as_anybody(acme: Tenant) -> Iterator[None]:
    """The rest of the test runs as a role with every privilege on every table but their ownership."""
    write(acme, 3)
    checkpoints.take()
    chain = Chain.objects.get(pk=acme.pk)
    Segment.objects.create(chain=chain, first=1, last=2, head="h", sha256="s", size=1, created_at=timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE anybody")
        cursor.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO anybody")
        cursor.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO anybody")
        cursor.execute("SET LOCAL ROLE anybody")
        cursor.execute("SET LOCAL lorayard.tenant = '*'")  # else it would see no row to change
    yield
    with connection.cursor() as cursor:
        cursor.execute("RESET ROLE")


def test_it_appends(as_anybody: None, acme: Tenant) -> None:
    write(acme, 2)
    assert Chain.objects.get(pk=acme.pk).length == 6


@pytest.mark.parametrize(
    "statement",
    [
        *(f"TRUNCATE audit_{table} CASCADE" for table in TABLES),
        *(f"DELETE FROM audit_{table}" for table in TABLES),
        "UPDATE audit_event SET target = 'x'",
        "UPDATE audit_event SET hash = hash",
        "UPDATE audit_checkpoint SET root = ''",
        "UPDATE audit_leaf SET length = 1",
        "UPDATE audit_segment SET last = 99",
        "UPDATE audit_chain SET length = 0, head = ''",
        "UPDATE audit_chain SET head = ''",
        "UPDATE audit_chain SET length = length + 1",
        "INSERT INTO audit_chain VALUES (gen_random_uuid(), 5, 'x')",
        "INSERT INTO audit_chain VALUES (gen_random_uuid(), 0, '') ON CONFLICT (id) DO UPDATE SET length = 0; "
        "UPDATE audit_chain SET length = 7",
    ],
)
@pytest.mark.parametrize(
    "pretence", ["", "SET LOCAL lorayard.audit_sealing = 'on'", "SET LOCAL pgtrigger.ignore = '{all}'"]
)
def test_it_changes_and_deletes_nothing(as_anybody: None, statement: str, pretence: str) -> None:
    before = Event.objects.count()
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"{pretence or 'SELECT 1'}; {statement}")
    assert Event.objects.count() == before


def test_it_cannot_switch_the_triggers_off(as_anybody: None) -> None:
    for statement in (
        "SET session_replication_role = replica",
        "ALTER TABLE audit_event DISABLE TRIGGER ALL",
        "DROP TRIGGER append_only ON audit_event",
        "DROP FUNCTION audit_is_append_only() CASCADE",
    ):
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.mark.parametrize("number", [3, 4, 6, 0])
def test_it_puts_no_event_anywhere_but_behind_the_head(as_anybody: None, acme: Tenant, number: int) -> None:
    event = Event.objects.get(tenant=acme, number=4)
    event.pk, event.number = None, number
    with pytest.raises(DatabaseError), transaction.atomic():
        event.save(force_insert=True)


def test_the_owner_is_held_to_the_same_as_long_as_the_triggers_stand(acme: Tenant) -> None:
    for statement in ("DELETE FROM audit_event", "UPDATE audit_chain SET head = ''", "TRUNCATE audit_event"):
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
    assert verify() == []
