"""Keeps merged models for as long as they may be downloaded, and takes away what nobody is to have any more."""

from functools import partial

from django.db import transaction
from django.utils import timezone

from audit.models import Action
from audit.services import SYSTEM, Actor, record
from merges import folders
from merges.errors import MergeSettled
from merges.models import Kind, Merge, State
from merges.services.requests import locked, tell


@transaction.atomic
def discard_merge(merge: Merge, *, actor: Actor) -> None:
    """Delete a merged model's files before their time. Raises MergeSettled where there are none."""
    row = locked(merge.pk)
    if row.kind != Kind.CHECKPOINT or row.state != State.READY:
        raise MergeSettled("There are no files of this merge to delete.")
    row.state, row.expires_at, row.size = State.EXPIRED, timezone.now(), 0
    row.save()
    transaction.on_commit(partial(folders.discard, row.pk), robust=True)
    record(Action.MERGE_EXPIRED, tenant=row.tenant, actor=actor, target=str(row))
    tell(row)


def expire_merges() -> int:
    """Delete the files of merged models whose time is over. Returns how many."""
    over = Merge.objects.filter(kind=Kind.CHECKPOINT, state=State.READY, expires_at__lt=timezone.now())
    expired = 0
    for merge in over:
        try:
            discard_merge(merge, actor=SYSTEM)
            expired += 1
        except MergeSettled:
            continue  # somebody else was first
    tidy_merges()
    return expired


def tidy_merges() -> int:
    """Remove the folders of merges that are over: what a worker wrote that was told too late. Returns how many."""
    return folders.sweep(keep=Merge.objects.kept().values_list("pk", flat=True))


@transaction.atomic
def record_download(merge: Merge, name: str, *, actor: Actor) -> None:
    """A merged model leaves the platform: that is worth an event."""
    record(Action.MERGE_DOWNLOADED, tenant=merge.tenant, actor=actor, target=str(merge), data={"file": name})
