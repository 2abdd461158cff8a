"""Counts who holds which files in the store, and empties it of those that nobody holds any more.

announce ──> put, acquire ──> release ──> collect

A put and the acquire that follows share one transaction and, with it, a lock that a delete needs alone: so what was put
is still there when it is acquired. A worker that dies in between leaves an announced row, which `sweep` collects.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import F
from django.utils import timezone
from psycopg.errors import LockNotAvailable

from adapters.manifest import Manifest
from adapters.store import Store
from dispatch import after_commit
from registry.models import ANNOUNCED, Blob, Reference
from tenants.models import Tenant

TASK = "jobs.tasks.collect_blob"
STORE = 0x1A5706E  # the key of PostgreSQL's advisory lock on the store
PATIENCE = "5s"  # a delete that waits keeps new puts waiting behind it


def announce(manifest: Manifest) -> None:
    """Make it known that these files are about to be stored. Call it outside of the transaction that stores them."""
    values = {"size": manifest.size, "announced_at": timezone.now()}
    Blob.objects.update_or_create(pk=manifest.digest, defaults=values)


def put(folder: Path) -> Manifest:
    """Store the folder's files. Until the caller's transaction ends, nothing is deleted from the store."""
    _share_store()
    return Store(settings.LORAYARD.store_url).put(folder)


def retract(digest: str) -> None:
    """What was announced, and perhaps put, is not to be held after all."""
    Blob.objects.filter(pk=digest).update(announced_at=None)
    collect(digest)


def acquire(tenant: Tenant, digest: str, size: int) -> None:
    """One more of the tenant's versions holds these files, which `put` stored in this transaction, or which it held."""
    _share_store()
    Blob.objects.bulk_create([Blob(digest=digest, size=size)], ignore_conflicts=True)
    blob = Blob.objects.select_for_update().get(pk=digest)
    if Reference.objects.filter(tenant=tenant, blob=blob).update(count=F("count") + 1) == 0:
        Reference.objects.create(tenant=tenant, blob=blob, count=1)
    Blob.objects.filter(pk=digest).update(announced_at=None)


def release(tenant: Tenant, digest: str) -> None:
    """One of the tenant's versions lets go. After the commit of the last one's, a worker empties the store of it."""
    assert connection.in_atomic_block, "a release belongs into the transaction of what lets go"
    blob = Blob.objects.select_for_update().get(pk=digest)
    reference = Reference.objects.get(tenant=tenant, blob=blob)
    if reference.count > 1:
        Reference.objects.filter(pk=reference.pk).update(count=F("count") - 1)
        return
    reference.delete()
    if not blob.references.exists():
        after_commit(TASK, digest)


def collect(digest: str) -> bool:
    """Delete the files from the store if nobody holds them. False: somebody does, or the store is in use just now."""
    with _store_alone() as alone:
        if not alone or not Blob.objects.unheld().filter(pk=digest).exists():
            return False
        Store(settings.LORAYARD.store_url).delete(digest)
        Blob.objects.filter(pk=digest).delete()
    return True


def collect_unheld() -> int:
    """Collect what nobody holds, whose worker was not asked or died. Returns how many digests."""
    return sum(collect(digest) for digest in list(Blob.objects.unheld().values_list("pk", flat=True)))


def sweep() -> int:
    """Collect what no release led to, and the store's own left-overs. Returns how many digests."""
    collected = collect_unheld()
    with _store_alone() as alone:
        if alone:
            Store(settings.LORAYARD.store_url).sweep(older_than=ANNOUNCED.total_seconds())
    return collected


def _share_store() -> None:
    assert connection.in_atomic_block, "the lock lasts as long as a transaction"
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [STORE])


@contextmanager
def _store_alone() -> Iterator[bool]:
    """A transaction in which nobody puts or deletes; False when somebody still does after PATIENCE."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [PATIENCE])
            try:
                with transaction.atomic():
                    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [STORE])
                alone = True
            except OperationalError as error:
                if not isinstance(error.__cause__, LockNotAvailable):
                    raise
                alone = False
            cursor.execute("SELECT set_config('lock_timeout', '0', true)")
        yield alone
