"""Who holds what in the store: the same files are there once, and are gone with the last version that holds them."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection, transaction

from adapters.manifest import Manifest
from adapters.store import Store
from audit.services import SYSTEM
from registry.models import ANNOUNCED, Blob, Reference, Version
from registry.services import blobs
from tenants.models import Tenant
from tenants.services import create_tenant

Push = Callable[..., Version]


def store() -> Store:
    return Store(django_settings.LORAYARD.store_url)


def counts() -> dict[str, int]:
    return {reference.tenant.slug: reference.count for reference in Reference.objects.select_related("tenant")}


def let_go(tenant: Tenant, digest: str) -> None:
    with transaction.atomic():
        blobs.release(tenant, digest)


def test_identical_files_are_stored_once_and_counted_per_tenant(acme: Tenant, globex: Tenant, push: Push) -> None:
    versions = [push(acme, "support"), push(acme, "other"), push(globex, "query")]
    (digest,) = {version.digest for version in versions}
    blob = Blob.objects.get()
    assert (blob.digest, blob.size, blob.announced_at) == (digest, versions[0].size, None)
    assert counts() == {"acme": 2, "globex": 1}
    assert list(store().digests()) == [digest]


def test_the_store_lets_go_with_the_last_version_of_the_last_tenant(
    acme: Tenant, globex: Tenant, push: Push, left_behind: Callable[[], set[str]]
) -> None:
    digest = push(acme, "support").digest
    push(acme, "other")
    push(globex, "query")
    for tenant, left in ((acme, {"acme": 1, "globex": 1}), (globex, {"acme": 1})):
        let_go(tenant, digest)
        assert counts() == left
        assert not blobs.collect(digest)
        assert store().has(digest)
    let_go(acme, digest)
    assert blobs.collect(digest)
    assert not store().has(digest)
    assert not Blob.objects.exists()
    assert left_behind() <= {"store/.lock"}


def test_a_tenant_cannot_let_go_of_what_a_stranger_holds(acme: Tenant, globex: Tenant, push: Push) -> None:
    digest = push(acme, "support").digest
    with pytest.raises(Reference.DoesNotExist):
        let_go(globex, digest)
    assert counts() == {"acme": 1}


def test_a_file_that_two_digests_share_survives_one_of_them(acme: Tenant, push: Push, tmp_path: Path) -> None:
    first, second = push(acme, "support", 0), push(acme, "support", 1)
    let_go(acme, first.digest)
    assert blobs.collect(first.digest)
    store().fetch(second.digest, tmp_path / "fetched")


def test_what_a_dying_worker_stored_is_swept_and_nothing_else(
    acme: Tenant, push: Push, peft_folders: list[Path], home: Path
) -> None:
    kept = push(acme, "support", 0).digest
    lost = Manifest.of(peft_folders[1])
    blobs.announce(lost)
    with transaction.atomic():
        blobs.put(peft_folders[1])
    partial, unknown = home / "store" / "incoming" / "half", home / "store" / "blobs" / ("0" * 64)
    for path in (partial, unknown):
        path.write_bytes(b"x")
    assert blobs.sweep() == 0  # its worker may still be at it
    assert store().has(lost.digest)
    Blob.objects.filter(pk=lost.digest).update(announced_at=Blob.objects.get(pk=lost.digest).created_at - ANNOUNCED)
    for path in (partial, unknown):
        os.utime(path, (0, 0))
    assert blobs.sweep() == 1
    assert list(store().digests()) == [kept]
    assert not partial.exists()
    assert not unknown.exists()


def test_announcing_again_what_is_held_takes_nothing_away(acme: Tenant, push: Push, peft_folders: list[Path]) -> None:
    digest = push(acme, "support").digest
    blobs.announce(Manifest.of(peft_folders[0]))
    assert blobs.sweep() == 0
    assert store().has(digest)


def in_threads(*calls: Callable[[], Any]) -> None:
    def run(call: Callable[[], Any]) -> None:
        try:
            call()
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.django_db(transaction=True)
def test_many_who_acquire_and_release_at_once_never_miscount(
    peft_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        blobs, "after_commit", lambda _task, digest: transaction.on_commit(lambda: asked.append(digest))
    )
    tenants = [create_tenant(slug, slug, actor=SYSTEM) for slug in ("acme", "globex")]
    manifest = Manifest.of(peft_folders[0])

    def take(tenant: Tenant) -> None:
        with transaction.atomic():
            blobs.acquire(tenant, blobs.put(peft_folders[0]).digest, manifest.size)

    def give(tenant: Tenant) -> None:
        let_go(tenant, manifest.digest)
        blobs.collect(manifest.digest)

    in_threads(*(lambda tenant=tenant: take(tenant) for tenant in tenants * 3))
    assert counts() == {"acme": 3, "globex": 3}
    in_threads(*(lambda tenant=tenant: give(tenant) for tenant in tenants * 2), lambda: take(tenants[0]))
    assert counts() == {"acme": 2, "globex": 1}
    assert store().has(manifest.digest)
    in_threads(*(lambda tenant=tenant: give(tenant) for tenant in (tenants[0], *tenants)))
    assert (counts(), asked) == ({}, [manifest.digest])
    assert not store().has(manifest.digest)


@pytest.mark.django_db(transaction=True)
def test_a_delete_waits_for_whoever_stores_and_then_leaves_it_to_the_sweep(
    peft_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PATIENCE", "50ms")
    blobs.announce(Manifest.of(peft_folders[0]))
    Blob.objects.update(announced_at=None)
    digest, seen = Blob.objects.get().pk, []
    with transaction.atomic():
        blobs.put(peft_folders[0])
        in_threads(lambda: seen.append(blobs.collect(digest)))
    assert seen == [False]
    assert blobs.sweep() == 1
    assert not store().has(digest)
