"""Archives and deletes versions, and has all that holds their weights let go: device, host, disk and store.

A version that something needs stays. Whoever comes to need one (an alias, a rollout, a merge) takes the adapter's row
lock first and points to the version with a protecting foreign key: that is what is looked for here, without knowing
whose table it is. Where such a table also keeps what is over, its queryset says by `active()` what is not.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from uuid import UUID

from django.conf import settings
from django.db import models, transaction
from django.utils import timezone

from audit.models import Action
from audit.services import Actor, record
from dispatch import idle, long_ago, send
from inference.client import EngineError
from registry import engine
from registry.errors import RollbackOpen, VersionNeeded, VersionNotReady
from registry.models import Adapter, AliasMove, Blob, State, Version
from registry.services import blobs
from registry.services.adapters import locked
from webhooks.services import emit

TASK = "jobs.tasks.release_version"
OVERDUE = timedelta(seconds=10)  # in which a version is let go of, if it can be
MOST_AT_ONCE = 20  # that are asked for together
MOST_NAMED = 5  # of one table's rows that need a version


class NotReleased(Exception):
    """Something still holds the version's weights, or can't be asked. It will be tried again."""


@transaction.atomic
def archive_version(version: Version, *, actor: Actor) -> Version:
    """Take a ready version out of service for good; pinned names stop too, and the engine lets go of it.

    Raises VersionNeeded, RollbackOpen, VersionNotReady.
    """
    adapter, version = _unneeded(version)
    if version.state != State.READY:
        raise VersionNotReady(f"v{version.number} is not ready, so it can't be archived.")
    return _retire(adapter, version, State.ARCHIVED, actor)


@transaction.atomic
def delete_version(version: Version, *, actor: Actor) -> None:
    """Remove a version that was judged: from service, from the engine, and its files from the store.

    Its number is not given again. Raises VersionNeeded, RollbackOpen, VersionNotReady while it is being validated.
    """
    adapter, version = _unneeded(version)
    if version.state not in (State.READY, State.ARCHIVED, State.REJECTED):
        raise VersionNotReady(f"v{version.number} is {version.state}, so it can't be deleted.")
    _retire(adapter, version, State.DELETED, actor)


def release_version(version_id: UUID) -> bool:
    """Have the store, then the engine, let go of a retired version, and see that they did. Repeatable.

    False: there was nothing to do. What another version in service holds too is left to it. Raises NotReleased.
    """
    version = Version.objects.unreleased().filter(pk=version_id).first()
    if version is None:
        return False
    if version.digest:
        _empty_store(version.digest)
        _empty_engine(version.digest)
    same = Version.objects.unreleased().filter(pk=version_id, state=version.state)
    return same.update(released_at=timezone.now()) == 1


def release_overdue() -> int:
    """Ask again for workers for versions whose release did not come to its end. Returns how many.

    A few at a time and at random, so that those that can't be released now keep nobody waiting.
    """
    if not idle(TASK):
        return 0
    overdue = Version.objects.unreleased().filter(long_ago("changed_at", OVERDUE)).order_by("?")
    for version in (found := list(overdue.values_list("pk", flat=True)[:MOST_AT_ONCE])):
        _enqueue(version)
    return len(found)


def _unneeded(version: Version) -> tuple[Adapter, Version]:
    """The adapter, locked, and the version as it is now. Raises VersionNeeded and RollbackOpen."""
    adapter = locked(version.adapter)
    version = adapter.versions.get(pk=version.pk)
    if needers := _needers(version):
        raise VersionNeeded(version.number, needers)
    hours = settings.LORAYARD.rollback_hours
    since = timezone.now() - timedelta(hours=hours)
    moves = AliasMove.objects.arrivals().filter(adapter=adapter, from_version=version, at__gt=since)
    for move in moves.filter(alias__in=adapter.aliases.values("name"))[:1]:
        until = move.at + timedelta(hours=hours)
        raise RollbackOpen(
            f"The alias {move.alias!r} was moved away from v{version.number} less than {hours:g} hours ago and may be "
            f"rolled back to it until {until:%Y-%m-%d %H:%M} UTC."
        )
    return adapter, version


def _needers(version: Version) -> list[dict[str, str]]:
    """What needs the version now: a few rows of each table, by kind, name and id."""
    relations = [each for each in Version._meta.related_objects if each.on_delete is models.PROTECT]
    found: list[models.Model] = []
    for relation in relations:
        rows = relation.related_model._default_manager.filter(**{relation.field.name: version})
        found += (rows.active() if hasattr(rows, "active") else rows)[:MOST_NAMED]
    return [{"kind": str(row._meta.verbose_name), "name": str(row), "id": str(row.pk)} for row in found]


def _retire(adapter: Adapter, version: Version, state: State, actor: Actor) -> Version:
    now = timezone.now()
    changes = {"state": state, "changed_at": now, "pinned_at": None, "released_at": None}
    moved = adapter.versions.filter(pk=version.pk, state=version.state).update(**changes)
    assert moved == 1, "a version's state changed under its adapter's lock"
    if state == State.DELETED and version.digest:
        blobs.release(adapter.tenant, version.digest)
    action = Action.VERSION_ARCHIVED if state == State.ARCHIVED else Action.VERSION_DELETED
    record(action, tenant=adapter.tenant, actor=actor, target=str(version), data={"from": version.state})
    emit(adapter.tenant, f"version.{state}", {"version": str(version), "digest": version.digest})
    transaction.on_commit(partial(_enqueue, version.pk), robust=True)
    return adapter.versions.get(pk=version.pk)


def _empty_store(digest: str) -> None:
    """First, so that the engine can't fetch the files again once it has let go."""
    blobs.collect(digest)
    if Blob.objects.unheld().filter(pk=digest).exists():
        raise NotReleased("The store is in use; its files are deleted later.")


def _empty_engine(digest: str) -> None:
    if Version.objects.filter(digest=digest, state=State.READY).exists():
        return
    try:
        state = engine.ask(lambda client: client.evict(digest))
    except EngineError as error:
        raise NotReleased(str(error)) from error
    if state.state != "absent":
        raise NotReleased(f"The adapter is {state.state} on the engine.")


def _enqueue(version: UUID) -> None:
    send(TASK, str(version))
