"""Old events leave the database for sealed segments, and the chain verifies over both."""

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from audit import archive, checkpoints, exports, proof, retention, signing
from audit.models import Chain, Event, Segment
from audit.verification import verify
from tenants.models import Tenant
from tests.audit.conftest import Sql, kinds, write


@pytest.fixture
def sealed(acme: Tenant) -> Segment:
    """Events 1 to 6 of acme's ten, in two segments; the sealings are events 8 and 9. Returns the second."""
    write(acme, 5)
    checkpoints.take()
    write(acme, 1)
    chain = Chain.objects.get(pk=acme.pk)
    later = timezone.now() + timedelta(days=1)
    retention.seal(chain, later, largest=6)
    checkpoints.take()
    segment = retention.seal(chain, later, largest=2)
    assert segment is not None
    checkpoints.take()
    checkpoints.publish()
    return segment


def test_the_chain_stays_verifiable_and_the_sealing_is_an_event(acme: Tenant, globex: Tenant, sealed: Segment) -> None:
    numbers = list(Event.objects.for_tenant(acme).order_by("number").values_list("number", "action"))
    assert numbers[-1] == (9, "audit:sealed")
    assert [(segment.first, segment.last) for segment in Segment.objects.order_by("first")] == [(1, 6), (7, 8)]
    assert [number for number, _ in numbers] == [9]
    assert verify() == verify(acme) == []
    write(acme, 1)
    assert verify() == []


def test_an_export_spans_segments_and_table(acme: Tenant, sealed: Segment, client_of: Callable[..., APIClient]) -> None:
    lines = client_of(acme).get("/api/v1/audit/export?after=3").content.decode().splitlines()
    report = proof.verify(lines, signing.public_key())
    assert (report.faults, report.first, report.number, report.signed) == ([], 4, 10, 9)
    every = list(exports.everything(Chain.objects.get(pk=acme.pk)))
    assert proof.verify(every, signing.public_key()).faults == []


def test_a_segments_file_is_an_export_of_its_own(sealed: Segment) -> None:
    first = Segment.objects.get(first=1)
    report = proof.verify(archive.read(first.path).decode().splitlines(), signing.public_key())
    assert (report.faults, report.number, report.signed) == ([], 6, 6)


def test_only_what_is_old_and_signed_is_sealed(acme: Tenant, settings: Any) -> None:
    write(acme, 3)
    chain = Chain.objects.get(pk=acme.pk)
    assert retention.seal(chain, timezone.now() + timedelta(days=1)) is None  # nothing is signed yet
    checkpoints.take()
    assert retention.seal(chain, timezone.now() - timedelta(days=1)) is None  # nothing is that old
    assert retention.seal_old() == 0  # off, unless it is set
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"audit_retention_days": 30})
    assert retention.seal_old() == 0
    assert Event.objects.for_tenant(acme).count() == 4


def file_edited(home: Path, segment: Segment) -> None:
    path = home / "audit" / segment.path
    path.write_bytes(path.read_bytes().replace(b"audit", b"tidua", 1))


def file_gone(home: Path, segment: Segment) -> None:
    (home / "audit" / segment.path).unlink()


@pytest.mark.parametrize(("attack", "found"), [(file_edited, "edited"), (file_gone, "missing")])
def test_a_segments_file_that_was_touched_is_found(
    acme: Tenant, sealed: Segment, home: Path, attack: Callable[..., None], found: str
) -> None:
    attack(home, sealed)
    assert found in kinds(acme)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE audit_segment SET sha256 = repeat('0', 64)", "forged"),
        ("UPDATE audit_segment SET last = last + 1 WHERE first = 7", "forged"),
        ("DELETE FROM audit_segment", "missing"),
        ("DELETE FROM audit_segment WHERE first = 1", "missing"),
    ],
)
def test_a_segments_row_that_was_touched_is_found(
    acme: Tenant, sealed: Segment, sql: Sql, statement: str, found: str
) -> None:
    sql(statement)
    assert found in kinds(acme)


@pytest.mark.parametrize("first", [1, 7])
def test_a_segments_file_outlives_its_row_and_is_told_of(
    acme: Tenant, sealed: Segment, sql: Sql, home: Path, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = Segment.objects.get(first=first).path
    content = archive.read(path)
    write(acme, 2)
    checkpoints.take()
    sql("DELETE FROM audit_segment WHERE first = %s", first)
    chain = Chain.objects.get(pk=acme.pk)
    for _ in range(2):
        assert retention.seal(chain, timezone.now() + timedelta(days=1)) is None
    assert archive.read(path) == content
    assert path in caplog.text
    told = [problem for problem in verify(acme) if path in problem.message]
    assert [(problem.number, problem.kind) for problem in told] == [(first, "missing")]


def test_a_whole_file_of_a_worker_that_died_before_its_row_is_taken_away(acme: Tenant, home: Path) -> None:
    """Its events are all still in the table, under the signature of the same checkpoint."""
    write(acme, 5)
    checkpoints.take()
    chain = Chain.objects.get(pk=acme.pk)
    stray = f"segments/{acme.pk}/000000000001-000000000004.jsonl"
    archive.write(stray, exports.sealed(chain, 1, chain.length))
    assert verify(acme) == []
    assert retention.seal(chain, timezone.now() - timedelta(days=1)) is None
    assert archive.names(f"segments/{acme.pk}") == []
    assert retention.seal(chain, timezone.now() + timedelta(days=1)) is not None
    assert verify(acme) == []


def test_a_file_and_row_made_up_together_are_found(acme: Tenant, sealed: Segment, sql: Sql) -> None:
    lines = [json.loads(line) for line in archive.read(sealed.path).decode().splitlines()]
    lines[1]["event"]["target"] = "other"
    lines[1]["hash"] = proof.digest(lines[1]["event"])
    content = "\n".join(json.dumps(line) for line in lines).encode()
    archive.write(sealed.path, content)
    sql("UPDATE audit_segment SET sha256 = %s WHERE id = %s", hashlib.sha256(content).hexdigest(), sealed.pk)
    assert {"forged", "reordered"} <= set(kinds(acme))


def test_an_event_put_back_beside_its_segment_is_found(acme: Tenant, sealed: Segment, sql: Sql) -> None:
    columns = ", ".join(field.attname for field in Event._meta.concrete_fields if field.attname not in ("id", "number"))
    sql(f"INSERT INTO audit_event (number, {columns}) SELECT 2, {columns} FROM audit_event WHERE number = 9")
    assert kinds(acme) == ["inserted"]


def test_a_store_that_loses_what_it_was_given_costs_no_event(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    write(acme, 3)
    checkpoints.take()
    read = archive.read
    monkeypatch.setattr(archive, "read", lambda path: read(path)[:-10])
    with pytest.raises(retention.NotKept):
        retention.seal(Chain.objects.get(pk=acme.pk), timezone.now() + timedelta(days=1))
    monkeypatch.undo()
    assert Event.objects.for_tenant(acme).count() == 4
    assert not Segment.objects.exists()


def test_what_a_killed_worker_left_in_the_store_is_taken_away(acme: Tenant, sealed: Segment, home: Path) -> None:
    folder = home / "audit" / "segments" / str(acme.pk)
    (folder / "000000000009-000000000099.jsonl").write_text("half")
    retention.seal(Chain.objects.get(pk=acme.pk), timezone.now() - timedelta(days=1))
    assert len(list(folder.iterdir())) == 2
    assert verify() == []


def test_not_even_the_owner_deletes_what_no_segment_holds(acme: Tenant, sealed: Segment) -> None:
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lorayard.audit_sealing = 'on'; DELETE FROM audit_event WHERE number = 9")
