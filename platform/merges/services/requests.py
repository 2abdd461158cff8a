"""Takes merges in, and cancels them. What they come to is found out by a worker, never here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial, reduce
from operator import or_
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q, Sum
from django.db.models.functions import Now
from django.utils import timezone

from audit.models import Action
from audit.services import Actor, record
from dispatch import SOON, deserted, over, send
from merges import folders
from merges.errors import MergeMalformed, MergeSettled, MergesTooLarge, MergeUnsigned, TooManyMerges
from merges.models import MOST_BYTES, MOST_PENDING, PENDING, Kind, Merge, Method, State
from registry import quarantine
from registry.errors import VersionNotReady
from registry.models import Adapter, Version
from registry.models import State as VersionState
from tenants.models import Tenant
from webhooks.services import emit

TASK = "jobs.tasks.run_merge"
LEASE = timedelta(minutes=2)  # longer than anything takes that a merge does without a word
QUEUED = timedelta(minutes=10)  # after which a worker is asked again, though messages may wait
MOST_SOURCES = 16


@dataclass(frozen=True)
class Source:
    """A version and how strongly it counts; a negative weight takes away what it does."""

    version: Version
    weight: float = 1.0

    def to_json(self) -> dict[str, Any]:
        version = self.version
        return {"version": str(version.pk), "name": str(version), "digest": version.digest, "weight": self.weight}


@transaction.atomic
def merge_into_base(version: Version, *, actor: Actor) -> Merge:
    """Have a ready version made one with its base model, as a checkpoint to download.

    Raises VersionNotReady, TooManyMerges, MergesTooLarge.
    """
    adapter = version.adapter
    _check([Source(version)], adapter)
    _check_room(adapter.tenant)
    merge = Merge(tenant=adapter.tenant, kind=Kind.CHECKPOINT, base_model=adapter.base_model)
    return _take_in(merge, [Source(version)], [adapter.name], actor)


@transaction.atomic
def merge_versions(
    target: Adapter, sources: Sequence[Source], *, method: Method, options: Mapping[str, Any], actor: Actor
) -> Merge:
    """Have ready versions combined into a new version of `target`. `options`: density, rank, majority_sign, seed.

    Raises MergeMalformed, MergeUnsigned, VersionNotReady, TooManyMerges.
    """
    if not 2 <= len(sources) <= MOST_SOURCES:
        raise MergeMalformed(f"Name 2 to {MOST_SOURCES} versions.", param="sources")
    if target.tenant.requires_signature:
        raise MergeUnsigned
    _check(sources, target)
    merge = Merge(
        tenant=target.tenant,
        kind=Kind.VERSION,
        base_model=target.base_model,
        adapter=target,
        method=method,
        options=dict(options),
    )
    return _take_in(merge, sources, [target.name, *(source.version.adapter.name for source in sources)], actor)


@transaction.atomic
def cancel_merge(merge: Merge, *, actor: Actor) -> Merge:
    """End it, and take away what it has made. Its worker learns of it within a second. Raises MergeSettled."""
    row = locked(merge.pk)
    if row.state not in PENDING:
        raise MergeSettled(f"The merge is {row.state}; it can't be cancelled any more.")
    row.state, row.finished_at, row.worker = State.CANCELLED, timezone.now(), None
    row.save()
    transaction.on_commit(partial(clear, row.pk), robust=True)
    record(Action.MERGE_CANCELLED, tenant=row.tenant, actor=actor, target=str(row))
    tell(row)
    return row


def tell(row: Merge, **data: Any) -> None:
    """Its tenant's endpoints of the state that it has entered, in the caller's transaction."""
    emit(row.tenant, f"merge.{row.state}", {"merge": str(row.pk), "kind": row.kind, **data})


def clear(merge: UUID) -> None:
    """Take away whatever a merge that came to nothing has made. Its new version would have had its id."""
    folders.discard(merge)
    quarantine.discard(merge)


def waiting() -> list[tuple[UUID, UUID, float, datetime]]:
    """The merges that no worker has: each with its tenant's id and weight, and when it was requested."""
    free = Merge.objects.filter(Q(state=State.QUEUED) | Q(pk__in=unattended()))
    return list(free.values_list("pk", "tenant_id", "tenant__weight", "created_at"))


def unattended() -> list[UUID]:
    """Merges whose worker died, failed or hangs. What failed rests four times as long after each attempt."""
    running = Merge.objects.filter(state=State.RUNNING)
    hanging = running.filter(over("leased_until", LEASE)).values_list("pk", flat=True)
    rests = [Q(attempts__lte=n, leased_until__lt=Now() + LEASE - SOON * 4 ** (n - 1)) for n in (1, 2, 3)]
    return [*hanging, *deserted(running.filter(reduce(or_, rests)).values_list("pk", flat=True))]


def enqueue(merge: UUID) -> None:
    """Ask for a worker. Should the queue be down, `resume_merges` asks again."""
    send(TASK, str(merge))


def locked(merge: UUID) -> Merge:
    """The merge, its row locked until the transaction ends."""
    rows = Merge.objects.select_for_update(of=("self",)).select_related("tenant", "base_model", "adapter__tenant")
    return rows.get(pk=merge)


def bytes_kept(tenant: Tenant) -> int:
    """Of merged models, those that are being made among them."""
    kept = Merge.objects.for_tenant(tenant).kept().filter(kind=Kind.CHECKPOINT)
    return kept.aggregate(sum=Sum("size"))["sum"] or 0


def _check(sources: Sequence[Source], target: Adapter) -> None:
    for source in sources:
        version = source.version
        if version.state != VersionState.READY:
            raise VersionNotReady(f"{version.adapter.name}@v{version.number} is not ready.", param="sources")
        if version.adapter.base_model_id != target.base_model_id:
            raise MergeMalformed(f"{version.adapter.name} is of another base model.", param="sources")
        assert version.adapter.tenant_id == target.tenant_id, "the caller found them among the tenant's"


def _check_room(tenant: Tenant) -> None:
    if bytes_kept(tenant) >= MOST_BYTES:
        raise MergesTooLarge(MOST_BYTES)


def _take_in(merge: Merge, sources: Sequence[Source], adapters: Sequence[str], actor: Actor) -> Merge:
    """Of two requests at once one counts the other: the tenant's row is locked."""
    Tenant.objects.select_for_update(no_key=True).get(pk=merge.tenant_id)
    if Merge.objects.for_tenant(merge.tenant).pending().count() >= MOST_PENDING:
        raise TooManyMerges(MOST_PENDING)
    merge.sources = [source.to_json() for source in sources]
    merge.adapters = sorted(set(adapters))
    merge.requester = str(actor)
    merge.leased_until = timezone.now() + QUEUED
    merge.save(force_insert=True)
    named = [{"name": source["name"], "weight": source["weight"]} for source in merge.sources]
    data = {"kind": merge.kind, "method": merge.method, "sources": named}
    record(Action.MERGE_REQUESTED, tenant=merge.tenant, actor=actor, target=str(merge), data=data)
    tell(merge)
    transaction.on_commit(partial(enqueue, merge.pk), robust=True)
    return merge
