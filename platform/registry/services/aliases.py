"""Moves aliases: by compare-and-set, so that of two who move at once one learns of it. A move is one write to one row,
and what is served is looked up in that row, so the next request anywhere meets the new version."""

from __future__ import annotations

from django.db import transaction

from audit.models import Action
from audit.services import SYSTEM, Actor, record
from registry.errors import AliasMoved, NothingToRollBack, VersionNotReady
from registry.models import STABLE, Adapter, Alias, AliasMove, State, Turn, Version
from registry.services.adapters import locked
from webhooks.services import emit

ACTIONS = {
    Turn.CREATED: Action.ALIAS_CREATED,
    Turn.MOVED: Action.ALIAS_MOVED,
    Turn.ROLLED_BACK: Action.ALIAS_ROLLED_BACK,
    Turn.DELETED: Action.ALIAS_DELETED,
}


@transaction.atomic
def move_alias(
    adapter: Adapter, name: str, version: int, *, expected: int | None, actor: Actor, reason: str = ""
) -> Alias:
    """Point the alias to version number `version`, if it now points to `expected` (None: does not exist yet).

    Raises AliasMoved, with where it points, VersionNotReady for a version that is not there to be served, and
    ValidationError for a name that makes no sense.
    """
    Alias(name=name).clean_fields(exclude=["adapter", "version"])
    adapter = locked(adapter)
    alias = _found(adapter, name, expected)
    target = adapter.versions.filter(number=version, state=State.READY).first()
    if target is None:
        raise VersionNotReady(f"{adapter.name} has no ready version v{version}.")
    if alias is None:
        return _point(Alias(adapter=adapter, name=name), target, Turn.CREATED, actor, reason)
    return alias if alias.version == target else _point(alias, target, Turn.MOVED, actor, reason)


@transaction.atomic
def rollback_alias(adapter: Adapter, name: str, *, expected: int, actor: Actor, reason: str = "") -> Alias:
    """Point the alias, if it now points to `expected`, to the version that it was moved there from.

    Rolled back once more, it goes one move further back, never forward again. Raises AliasMoved, NothingToRollBack,
    and VersionNotReady if that version was archived since.
    """
    adapter = locked(adapter)
    alias = _found(adapter, name, expected)
    target = previous(alias) if alias else None
    if alias is None or target is None:
        raise NothingToRollBack(f"The alias {name!r} was never moved to v{expected}, so there is no way back.")
    if target.state != State.READY:
        raise VersionNotReady(f"v{target.number}, where the alias came from, is {target.state}.")
    return _point(alias, target, Turn.ROLLED_BACK, actor, reason)


@transaction.atomic
def delete_alias(alias: Alias, *, actor: Actor, reason: str = "") -> None:
    """Remove the name; the version stays. Raises AliasMoved when somebody else removed it first."""
    adapter = locked(alias.adapter)
    current = adapter.aliases.select_related("version").filter(pk=alias.pk).first()
    if current is None:
        raise AliasMoved(alias.name, None)
    current.delete()
    _remember(current, Turn.DELETED, current.version, None, actor, reason)


def name_stable(adapter: Adapter, version: Version) -> Alias | None:
    """The first version that becomes ready is `stable`; later ones are moved there by people. The adapter is locked."""
    others = adapter.versions.exclude(digest="").exclude(pk=version.pk)
    if others.exists() or adapter.aliases.filter(name=STABLE).exists():
        return None
    return _point(Alias(adapter=adapter, name=STABLE), version, Turn.CREATED, SYSTEM, "")


def previous(alias: Alias) -> Version | None:
    """Where a rollback would lead: the version from which the alias was last moved to the one it points to."""
    moves = AliasMove.objects.arrivals().filter(adapter=alias.adapter_id, alias=alias.name, to_version=alias.version_id)
    last = moves.select_related("from_version").first()
    return last.from_version if last else None


def _found(adapter: Adapter, name: str, expected: int | None) -> Alias | None:
    """The alias, where the caller thinks it is. Raises AliasMoved."""
    alias = adapter.aliases.select_related("version").filter(name=name).first()
    current = alias.version.number if alias else None
    if current != expected:
        raise AliasMoved(name, current)
    return alias


def _point(alias: Alias, target: Version, kind: Turn, actor: Actor, reason: str) -> Alias:
    origin = alias.version if alias.pk else None
    alias.version = target
    alias.save()
    _remember(alias, kind, origin, target, actor, reason)
    return alias


def _remember(
    alias: Alias, kind: Turn, origin: Version | None, target: Version | None, actor: Actor, reason: str
) -> None:
    adapter = alias.adapter
    ends = {"from_version": origin, "to_version": target}
    AliasMove.objects.create(adapter=adapter, alias=alias.name, kind=kind, **ends, actor=str(actor), reason=reason)
    data = {"from": origin and origin.number, "to": target and target.number}
    note = {"reason": reason} if reason else {}
    record(ACTIONS[kind], tenant=adapter.tenant, actor=actor, target=str(alias), data={**data, **note})
    event = "alias.deleted" if target is None else "alias.moved"
    emit(adapter.tenant, event, {"alias": str(alias), **data})
