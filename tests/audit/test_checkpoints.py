"""Signed checkpoints, against somebody who owns the database and knows how hashes are made, but has not the key."""

import base64
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import archive, checkpoints, proof, signing
from audit.models import Chain, Checkpoint, Event, Leaf
from audit.verification import verify
from jobs import tasks
from tenants.models import Tenant
from tests.audit.conftest import Sql, kinds, write


def rehash(sql: Sql, tenant: Tenant, first: int) -> None:
    """Make every hash from number `first` on anew, and the chain's head too, as only the owner can."""
    previous = Event.objects.get(tenant=tenant, number=first - 1).hash if first > 1 else ""
    events = list(Event.objects.filter(tenant=tenant, number__gte=first).order_by("number"))
    for event in events:
        event.previous = previous
        event.hash = previous = event.compute_hash()
        sql("UPDATE audit_event SET previous = %s, hash = %s WHERE id = %s", event.previous, event.hash, event.pk)
    length = Event.objects.filter(tenant=tenant).order_by("-number")[0].number
    sql("UPDATE audit_chain SET head = %s, length = %s WHERE id = %s", previous, length, tenant.pk)


def sign_off() -> Checkpoint:
    checkpoint = checkpoints.take()
    checkpoints.publish()
    assert checkpoint is not None
    return checkpoint


def test_a_checkpoint_speaks_of_the_chains_that_grew(acme: Tenant, globex: Tenant) -> None:
    first = sign_off()
    assert (first.number, first.size, first.previous) == (1, 2, "")
    assert checkpoints.take() is None
    write(acme, 3)
    write(None, 1)
    second = sign_off()
    assert (second.number, second.size, second.previous) == (2, 2, first.hash)
    assert Leaf.objects.get(checkpoint=second, chain=acme.pk).length == 4
    assert verify() == verify(acme) == []


def test_a_path_leads_from_every_leaf_to_the_root_whatever_their_number() -> None:
    for count in range(1, 20):
        leaves = [proof.leaf_of(f"chain-{number}", number, "h") for number in range(count)]
        for leaf, path in zip(leaves, proof.paths_to(leaves), strict=True):
            assert proof.root_from(leaf, path) == proof.root_of(leaves)
            assert proof.root_from({**leaf, "length": 99}, path) != proof.root_of(leaves)


def test_a_tail_whose_hashes_were_made_anew_is_found(acme: Tenant, globex: Tenant, sql: Sql) -> None:
    write(acme, 4)
    sign_off()
    sql("UPDATE audit_event SET target = 'key:other' WHERE tenant_id = %s AND number = 3", acme.pk)
    rehash(sql, acme, 3)
    assert kinds(acme) == ["rewritten"]
    assert kinds(globex) == []


def test_an_event_put_in_between_with_every_hash_made_anew_is_found(acme: Tenant, sql: Sql) -> None:
    write(acme, 4)
    sign_off()
    sql("UPDATE audit_event SET number = -number WHERE tenant_id = %s AND number >= 3", acme.pk)
    sql("UPDATE audit_event SET number = 1 - number WHERE tenant_id = %s AND number < 0", acme.pk)
    fields = [field.attname for field in Event._meta.concrete_fields if field.attname != "id"]
    columns = ", ".join(fields)
    chosen = ", ".join("3" if name == "number" else name for name in fields)
    sql(
        f"INSERT INTO audit_event ({columns}) SELECT {chosen} FROM audit_event WHERE tenant_id = %s AND number = 2",
        acme.pk,
    )
    rehash(sql, acme, 3)
    assert kinds(acme) == ["rewritten"]


def test_two_events_that_changed_places_with_every_hash_made_anew_are_found(acme: Tenant, sql: Sql) -> None:
    write(acme, 4)
    sign_off()
    sql("UPDATE audit_event SET number = number - 5 WHERE tenant_id = %s AND number IN (2, 3)", acme.pk)
    sql("UPDATE audit_event SET number = -number WHERE tenant_id = %s AND number < 0", acme.pk)
    rehash(sql, acme, 2)
    assert kinds(acme) == ["rewritten"]


def test_a_tail_cut_off_together_with_the_chains_head_is_found(acme: Tenant, sql: Sql) -> None:
    write(acme, 4)
    sign_off()
    sql("DELETE FROM audit_event WHERE tenant_id = %s AND number > 3", acme.pk)
    rehash(sql, acme, 1)
    assert Chain.objects.get(pk=acme.pk).length == 3
    assert kinds(acme) == ["missing"]


def test_a_chain_that_is_gone_altogether_is_found(acme: Tenant, sql: Sql) -> None:
    sign_off()
    sql("DELETE FROM audit_event WHERE tenant_id = %s", acme.pk)
    sql("DELETE FROM audit_chain WHERE id = %s", acme.pk)
    assert kinds() == kinds(acme) == ["missing"]
    sql("INSERT INTO audit_chain VALUES (%s, 0, '')", acme.pk)  # since the test's own end looks at foreign keys


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE audit_chain SET head = repeat('0', 64)", "edited"),
        ("UPDATE audit_chain SET length = length - 1", "inserted"),
        ("UPDATE audit_chain SET length = length + 1", "missing"),
        ("UPDATE audit_leaf SET head = repeat('0', 64)", "rewritten"),
        ("UPDATE audit_leaf SET length = length + 1", "missing"),
        ("UPDATE audit_checkpoint SET root = repeat('0', 64)", "forged"),
        ("UPDATE audit_checkpoint SET created_at = created_at - interval '1 day'", "edited"),
        ("UPDATE audit_checkpoint SET previous = repeat('0', 64)", "reordered"),
        ("DELETE FROM audit_leaf; DELETE FROM audit_checkpoint", "missing"),
        ("DELETE FROM audit_leaf WHERE checkpoint_id = 1; DELETE FROM audit_checkpoint WHERE number = 1", "missing"),
    ],
)
def test_heads_and_checkpoints_that_were_touched_are_found(acme: Tenant, sql: Sql, statement: str, found: str) -> None:
    write(acme, 2)
    sign_off()
    write(acme, 2)
    sign_off()
    for part in statement.split(";"):
        sql(part)
    assert found in kinds(acme)
    assert found in kinds()


def test_leaves_that_are_gone_are_found_by_whoever_reads_them_all(acme: Tenant, sql: Sql) -> None:
    sign_off()
    sql("DELETE FROM audit_leaf")
    assert kinds() == ["edited"]


def test_a_path_that_leads_elsewhere_is_found(acme: Tenant, globex: Tenant, sql: Sql) -> None:
    sign_off()
    sql("UPDATE audit_leaf SET path = '[]'")
    assert kinds(acme) == kinds(globex) == ["forged"]


def test_a_log_written_anew_and_signed_with_another_key_is_found(acme: Tenant, sql: Sql) -> None:
    write(acme, 2)
    genuine = sign_off()
    sql("UPDATE audit_event SET target = 'key:other' WHERE tenant_id = %s AND number = 2", acme.pk)
    rehash(sql, acme, 2)
    chain = Chain.objects.get(pk=acme.pk)
    sql("UPDATE audit_leaf SET head = %s", chain.head)
    genuine.root = proof.root_of([leaf.content() for leaf in genuine.leaves.all()])
    key = Ed25519PrivateKey.generate()
    signed = base64.b64encode(key.sign(proof.CHECKPOINT + proof.canonical(genuine.content()))).decode()
    sql(
        "UPDATE audit_checkpoint SET root = %s, hash = %s, signature = %s, key = %s",
        *(genuine.root, proof.digest(genuine.content()), signed),
        base64.b64encode(key.public_key().public_bytes_raw()).decode(),
    )
    assert kinds(acme) == ["forged", "rewritten"]  # the signature, and the artifact store's copy


def test_the_last_checkpoint_taken_back_with_the_events_it_signed_is_found(acme: Tenant, sql: Sql) -> None:
    write(acme, 2)
    sign_off()
    write(acme, 2)
    sign_off()
    sql("DELETE FROM audit_leaf WHERE checkpoint_id = 2")
    sql("DELETE FROM audit_checkpoint WHERE number = 2")
    sql("DELETE FROM audit_event WHERE tenant_id = %s AND number > 3", acme.pk)
    rehash(sql, acme, 1)
    assert [str(problem) for problem in verify(acme)] == [
        "checkpoints #1: missing: the artifact store has a copy of checkpoint 2, which is gone"
    ]
    write(acme, 3)
    with pytest.raises(checkpoints.Diverged):  # and what proves it is not written over
        sign_off()


def test_a_copy_that_somebody_made_up_is_found(acme: Tenant) -> None:
    sign_off()
    archive.write(checkpoints.NEWEST, b'{"checkpoint": {"number": 1}, "signature": "x"}')
    assert kinds() == ["forged"]
    archive.write(checkpoints.NEWEST, b"garbage")
    assert kinds() == ["forged"]


def test_the_key_is_made_once_and_only_its_owner_can_read_it(home: Path) -> None:
    key = signing.public_key()
    assert signing.public_key() == key
    assert stat.S_IMODE((home / signing.FILE).stat().st_mode) == 0o600
    assert len(base64.b64decode(key)) == 32


def test_a_key_that_is_told_wins_and_the_former_one_still_counts(acme: Tenant, settings: Any) -> None:
    sign_off()
    former, told = signing.public_key(), base64.b64encode(b"k" * 32).decode()
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"audit_key": told})
    assert signing.public_key() != former
    assert set(kinds()) == {"forged"}
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"audit_former_keys": former})
    write(acme, 1)
    sign_off()
    assert kinds() == []


def test_the_beats_job_signs_and_publishes(acme: Tenant) -> None:
    tasks.checkpoint_audit.apply(throw=True)
    tasks.checkpoint_audit.apply(throw=True)
    assert (Checkpoint.objects.count(), checkpoints.compare()) == (1, 1)
