"""Brings versions to the engine's device, keeps them there and sends them away; tells where they are.

A pin is a wish that is kept here (`Version.pinned_at`), since an engine that restarts has forgotten its own:
`hold_pins` tells it again. Equal files of two tenants are one adapter to the engine; neither can send the other's away,
or see from what it is told whether the other has it or uses it: a tenant is told of what it did itself
(`registry.services.uses`), and the same whether it is alone or not.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from django.db import transaction
from django.utils import timezone

from audit.models import Action
from audit.services import Actor, record
from inference.client import (
    AdapterMissing,
    AdapterState,
    AdapterUnavailable,
    EngineClient,
    EngineError,
    PinsFull,
    Residency,
)
from registry import engine
from registry.errors import EngineUnavailable, PinsSpent, VersionNotReady
from registry.models import State, Version, VersionQuerySet
from registry.services import quotas
from registry.services.adapters import locked
from registry.services.uses import forget_use, note_use, used
from tenants.connections import let_go
from tenants.errors import QuotaExceeded
from tenants.isolation import across_every_tenant
from tenants.services import hold

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 3.0  # seconds for an answer that needs no loading
LOADING = 30.0  # seconds for one that does
SHARE = 2  # one in so many slots may be pinned


@dataclass(frozen=True)
class Place:
    """Where its tenant has a version. state: resident, loading, draining or absent; tier: device, host, disk or store.

    `pinned`: its tenant wants it to stay; `held`: the engine knows.
    """

    state: str = "absent"
    tier: str = "store"
    bytes: int = 0
    pinned: bool = False
    held: bool = False


def locate(version: Version, *, patience: float = PATIENCE) -> Place:
    """Where the version is now, if its tenant had it brought there in the last hour or pinned it.

    Raises EngineUnavailable, also after `patience` seconds.
    """
    told: Residency = _ask(lambda client: client.residency(timeout=patience))
    states = {adapter.digest: adapter for adapter in told.adapters}
    return _place(version, states.get(version.digest))


def preload_version(version: Version, *, actor: Actor) -> Place:
    """Bring a ready version to the device; answers when it is there. Raises VersionNotReady, EngineUnavailable."""
    _check_ready(version)
    state = _ask(lambda client: client.preload(version.digest, timeout=LOADING))
    _record(Action.VERSION_PRELOADED, version, actor)
    note_use(version.adapter.tenant_id, version.digest)
    return _place(version, state)


def pin_version(version: Version, *, actor: Actor) -> Place:
    """Bring a ready version to the device for good, until it is unpinned, evicted or archived.

    The engine is asked first and no lock is held meanwhile; where the wish can't be kept, it is told to forget. Raises
    QuotaExceeded, PinsSpent, VersionNotReady, EngineUnavailable; then nothing is pinned.
    """
    _check_ready(version)
    _check_quota(version)
    _check_slots(version, _ask(lambda client: client.residency(timeout=PATIENCE)))
    state = _ask(lambda client: client.preload(version.digest, pin=True, timeout=LOADING))
    try:
        pinned = _pin(version, actor)
    except (QuotaExceeded, VersionNotReady):
        _forget(version)
        raise
    note_use(version.adapter.tenant_id, version.digest)
    return _place(pinned, state)


def unpin_version(version: Version, *, actor: Actor) -> Place:
    """Let a version make room for others again. Raises EngineUnavailable when the engine wasn't told; ask again."""
    _unpin(version, Action.VERSION_UNPINNED, actor)
    if _wanted(version):
        return locate(version)
    return _place(version, _ask(lambda client: client.unpin(version.digest, timeout=PATIENCE)))


def evict_version(version: Version, *, actor: Actor) -> Place:
    """Unpin a version and send it off the device, out of the host's memory and off the local disk.

    What runs on it ends first. Raises EngineUnavailable when the engine wasn't told; ask again then. Where others have
    the files too, the engine keeps them and their tenant is told the same.
    """
    _unpin(version, Action.VERSION_EVICTED, actor)
    forget_use(version.adapter.tenant_id, version.digest)
    if _wanted(version) or _exists(_others(version).filter(state=State.READY)):
        _ask(lambda client: client.residency(timeout=PATIENCE))  # fails while the engine is down, as evicting does
    else:
        _ask(lambda client: client.evict(version.digest, timeout=PATIENCE))
    return Place()


def hold_pins() -> int:
    """Tell an engine that has restarted what is pinned. Returns of how many versions it was told."""
    pinned = list(Version.objects.exclude(pinned_at=None).order_by("pinned_at"))
    try:
        told = engine.ask(lambda client: client.residency(timeout=PATIENCE)) if pinned else None
    except EngineError:
        return 0  # down; the next beat tries again
    held = {adapter.digest for adapter in told.adapters if adapter.pinned} if told else set()
    missing = dict.fromkeys(version.digest for version in pinned if version.digest not in held)
    for digest in missing:
        _hold(digest)
    return len(missing)


@transaction.atomic
def _pin(version: Version, actor: Actor) -> Version:
    tenant = hold(version.adapter.tenant)
    locked(version.adapter)
    version = Version.objects.select_related("adapter__tenant").get(pk=version.pk)
    _check_ready(version)
    if version.pinned_at is None:
        quotas.check(tenant, pins=1)
        version.pinned_at = timezone.now()
        version.save(update_fields=["pinned_at", "changed_at"])
        record(Action.VERSION_PINNED, tenant=tenant, actor=actor, target=str(version))
    return version


@transaction.atomic
def _unpin(version: Version, action: Action, actor: Actor) -> None:
    adapter = locked(version.adapter)
    pinned = adapter.versions.filter(pk=version.pk).exclude(pinned_at=None).update(pinned_at=None) == 1
    version.pinned_at = None
    if pinned or action == Action.VERSION_EVICTED:
        record(action, tenant=adapter.tenant, actor=actor, target=str(version), data={"pinned": pinned})


@transaction.atomic
def _record(action: Action, version: Version, actor: Actor) -> None:
    record(action, tenant=version.adapter.tenant, actor=actor, target=str(version))


def _check_ready(version: Version) -> None:
    if version.state != State.READY:
        raise VersionNotReady(f"v{version.number} is {version.state}, so it can't be brought to the device.")


@transaction.atomic
def _check_quota(version: Version) -> None:
    """A look before the engine is asked; `_pin` decides."""
    if version.pinned_at is None:
        quotas.check(version.adapter.tenant, pins=1)


def _check_slots(version: Version, residency: Residency) -> None:
    digests = Version.objects.exclude(pinned_at=None).exclude(digest=version.digest).values("digest").distinct()
    with across_every_tenant():  # the slots are everybody's
        pinned = digests.count()
    if (pinned + 1) * SHARE > residency.slots:
        raise PinsSpent("As many versions are pinned as the engine can keep; the operator can give it more slots.")


def _others(version: Version) -> VersionQuerySet:
    """Other tenants' versions with the same files."""
    return Version.objects.filter(digest=version.digest).exclude(adapter__tenant=version.adapter.tenant)


def _wanted(version: Version) -> bool:
    """Whether any version with these files is pinned."""
    return _exists(Version.objects.filter(digest=version.digest).exclude(pinned_at=None))


def _exists(versions: VersionQuerySet) -> bool:
    """Whether there are such versions, whosever they are; no more than that leaves here."""
    with across_every_tenant():
        return versions.exists()


def _hold(digest: str) -> None:
    try:
        engine.ask(lambda client: client.preload(digest, pin=True, timeout=LOADING))
    except EngineError as error:
        log.warning("a pinned version could not be brought back: %s", error)


def _forget(version: Version) -> None:
    if not _wanted(version):
        _ask(lambda client: client.unpin(version.digest, timeout=PATIENCE))


def _place(version: Version, state: AdapterState | None) -> Place:
    pinned, use = version.pinned_at is not None, (version.adapter.tenant_id, version.digest)
    if state is None or not (pinned or used([use])):
        return Place(pinned=pinned)
    return Place(state.state, state.tier, state.bytes, pinned, held=pinned and state.pinned)


def _ask(question: Callable[[EngineClient], Awaitable[T]]) -> T:
    let_go()  # loading may take long, and the connection is shared; not in a transaction
    try:
        return engine.ask(question)
    except PinsFull as error:
        raise PinsSpent(str(error)) from error
    except (AdapterMissing, AdapterUnavailable) as error:
        raise VersionNotReady(str(error)) from error
    except EngineError as error:
        raise EngineUnavailable(str(error)) from error
