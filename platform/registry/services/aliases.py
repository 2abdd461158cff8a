"""Moves aliases: by compare-and-set, so that of two who move at once one learns of it."""

from django.db import transaction

from audit.models import Action
from audit.services import Actor, record
from registry.errors import AliasMoved, VersionNotReady
from registry.models import Adapter, Alias, State
from registry.services.adapters import locked
from webhooks.services import emit


@transaction.atomic
def move_alias(adapter: Adapter, name: str, version: int, *, expected: int | None, actor: Actor) -> Alias:
    """Point the alias to version number `version`, if it now points to `expected` (None: does not exist yet).

    Raises AliasMoved, with where it points, VersionNotReady for a version that is not there to be served, and
    ValidationError for a name that makes no sense.
    """
    Alias(name=name).clean_fields(exclude=["adapter", "version"])
    adapter = locked(adapter)
    alias = adapter.aliases.select_related("version").filter(name=name).first()
    current = alias.version.number if alias else None
    if current != expected:
        raise AliasMoved(name, current)
    target = adapter.versions.filter(number=version, state=State.READY).first()
    if target is None:
        raise VersionNotReady(f"{adapter.name} has no ready version v{version}.")
    if alias and current == version:
        return alias
    alias = alias or Alias(adapter=adapter, name=name)
    alias.version = target
    alias.save()
    action = Action.ALIAS_CREATED if current is None else Action.ALIAS_MOVED
    data = {"from": current, "to": version}
    record(action, tenant=adapter.tenant, actor=actor, target=str(alias), data=data)
    emit(adapter.tenant, "alias.moved", {"alias": str(alias), **data})
    return alias


@transaction.atomic
def delete_alias(alias: Alias, *, actor: Actor) -> None:
    """Remove the name; the version stays. Raises AliasMoved when somebody else removed it first."""
    adapter = locked(alias.adapter)
    current = adapter.aliases.select_related("version").filter(pk=alias.pk).first()
    if current is None:
        raise AliasMoved(alias.name, None)
    current.delete()
    data = {"from": current.version.number}
    record(Action.ALIAS_DELETED, tenant=adapter.tenant, actor=actor, target=str(alias), data=data)
