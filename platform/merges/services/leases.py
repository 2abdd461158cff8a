"""Gives one worker at a time a merge, and settles it: under the row's lock, while the worker's lease lasts.

A worker that was killed loses its lease in time. Whoever takes over finds the files that were finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast
from uuid import UUID, uuid4

from django.core.files import File as Upload
from django.db import connection, transaction
from django.utils import timezone

from adapters.errors import Finding
from adapters.manifest import File
from audit.models import Action
from audit.services import SYSTEM, Actor, record
from dispatch import attended, over
from merges import folders
from merges.models import KEPT, MOST_BYTES, Merge, State
from merges.services.requests import LEASE, bytes_kept, clear, enqueue, locked, tell
from registry import quarantine
from registry.services import upload_version
from tenants.models import Tenant

DISK = 0x1A5D15C  # the key of PostgreSQL's advisory lock on what is left of the disk
ATTEMPTS = 5  # to take it up, each of which was broken off


class Lost(Exception):
    """The merge is no longer this worker's: it was cancelled, or another has it."""


class NoRoom(Exception):
    """The merged model is larger than what is left, of the tenant's allowance or of the disk."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a merge."""

    merge: Merge
    worker: UUID


@transaction.atomic
def claim(merge_id: UUID) -> Lease | None:
    """None when it is settled or another worker has it. Given up for good after ATTEMPTS in vain."""
    row = locked(merge_id)
    now = timezone.now()
    resumed = row.state == State.RUNNING and not _worked_on(row)
    if row.state != State.QUEUED and not resumed:
        return None
    row.state, row.worker, row.leased_until = State.RUNNING, uuid4(), now + LEASE
    row.attempts += 1
    row.save()
    if row.attempts > ATTEMPTS:
        _fail(row, Finding("broken-off", "It broke off again and again; tell the operator."))
        return None
    if not resumed:
        tell(row)
    return Lease(row, row.worker)


def keep(lease: Lease, **told: Any) -> None:
    """Hold on for longer, and say how far it is. Raises Lost."""
    held = Merge.objects.filter(pk=lease.merge.pk, state=State.RUNNING, worker=lease.worker)
    if held.update(leased_until=timezone.now() + LEASE, **told) != 1:
        raise Lost


@transaction.atomic
def reserve(lease: Lease, size: int) -> None:
    """Count `size` bytes towards what the tenant keeps and what is taken of the disk. Raises NoRoom, Lost."""
    row = _held(lease)
    Tenant.objects.select_for_update(no_key=True).get(pk=row.tenant_id)
    others = bytes_kept(row.tenant) - row.size
    if others + size > MOST_BYTES:
        raise NoRoom(f"The merged model has {size:,} bytes, and {max(0, MOST_BYTES - others):,} are left to you.")
    if size > _left_on_disk(row) + folders.written(row.pk):
        raise NoRoom(f"The merged model has {size:,} bytes, and the platform's disk has too little room; ask later.")
    Merge.objects.filter(pk=row.pk).update(size=size)


@transaction.atomic
def hand_over(lease: Lease) -> None:
    """Back into the queue: another shift goes on."""
    row = _held(lease)
    row.state, row.worker, row.leased_until, row.attempts = State.QUEUED, None, timezone.now(), 0
    row.save()
    tell(row)
    transaction.on_commit(partial(enqueue, row.pk), robust=True)


@transaction.atomic
def make_room(lease: Lease) -> None:
    """Leave off for others' sake, which is nobody's news: it stays running, for any worker to go on with."""
    row = _held(lease)
    row.worker, row.leased_until, row.attempts = None, timezone.now() - LEASE, 0
    row.save()
    transaction.on_commit(partial(enqueue, row.pk), robust=True)


@transaction.atomic
def finish_checkpoint(lease: Lease, files: Sequence[File], agreement: dict[str, Any]) -> State:
    """The merged model is whole and verified. Raises Lost."""
    row = _held(lease)
    row.files = [asdict(file) for file in files]
    row.agreement, row.size = agreement, sum(file.size for file in files)
    row.expires_at = timezone.now() + KEPT
    transaction.on_commit(partial(folders.keep_result, row.pk), robust=True)
    data = {"size": row.size, "digest": _provenance(files), "deviation": agreement["deviation"]}
    return _settle(row, State.READY, Action.MERGE_READY, data)


@transaction.atomic
def finish_version(lease: Lease, folder: Path) -> State:
    """Hand the two files in as the adapter's next version, which is validated like any upload. Raises Lost.

    The version has the merge's own id, so that nothing of one that was killed on the way is left in quarantine.
    """
    row = _held(lease)
    if row.adapter is None:
        return _fail(row, Finding("adapter-gone", "The adapter that the new version was meant for was deleted."))
    quarantine.discard(row.pk)
    with _opened(folder) as files:
        row.version = upload_version(row.adapter, files, actor=requester(row), id=row.pk)
    transaction.on_commit(partial(folders.discard, row.pk), robust=True)
    return _settle(row, State.READY, Action.MERGE_READY, {"version": str(row.version)})


@transaction.atomic
def fail(lease: Lease, finding: Finding) -> State:
    """Raises Lost."""
    return _fail(_held(lease), finding)


def requester(merge: Merge) -> Actor:
    kind, _, name = merge.requester.partition(":")
    return Actor(kind=cast(Literal["user", "key", "system"], kind), id=name)


@contextmanager
def _opened(folder: Path) -> Iterator[list[Upload[bytes]]]:
    """The folder's files, as uploads."""
    with ExitStack() as stack:
        yield [Upload(stack.enter_context(path.open("rb")), name=path.name) for path in sorted(folder.iterdir())]


def _worked_on(row: Merge) -> bool:
    """Whether somebody else works on it: is there, and has not been silent for too long."""
    alive = Merge.objects.filter(pk=row.pk).exclude(over("leased_until", LEASE))
    return alive.exists() and attended(row.pk)


def _fail(row: Merge, finding: Finding) -> State:
    row.finding = asdict(finding)
    transaction.on_commit(partial(clear, row.pk), robust=True)
    return _settle(row, State.FAILED, Action.MERGE_FAILED, {"rule": finding.rule})


def _settle(row: Merge, state: State, action: Action, data: dict[str, Any]) -> State:
    row.state, row.finished_at, row.worker = state, timezone.now(), None
    row.save()
    record(action, tenant=row.tenant, actor=SYSTEM, target=str(row), data=data)
    tell(row, **data)
    return state


def _held(lease: Lease) -> Merge:
    row = locked(lease.merge.pk)
    if row.state != State.RUNNING or row.worker != lease.worker:
        raise Lost
    return row


def _left_on_disk(row: Merge) -> int:
    """Free bytes but those that other merges have reserved and not yet written; nobody else reserves meanwhile."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [DISK])
    reserved = Merge.objects.pending().exclude(pk=row.pk).values_list("pk", "size")
    return folders.free() - sum(max(0, size - folders.written(pk)) for pk, size in reserved)


def _provenance(files: Sequence[File]) -> str:
    """The hash of the provenance file names every other file's."""
    return next(f"sha256:{file.sha256}" for file in files if file.name == "provenance.json")
