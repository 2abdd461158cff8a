"""Writes events inside the transaction of what they record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.db import connection, models
from django.utils import timezone

from audit import redaction
from audit.models import PLATFORM_CHAIN, Action, Chain, Event


@dataclass(frozen=True)
class Actor:
    """Who did it, and from where. `id` is a key's or a user's id, never a secret."""

    kind: Literal["user", "key", "system"]
    id: str
    address: str = ""
    request_id: str = ""
    user_agent: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


SYSTEM = Actor(kind="system", id="lorayard")


def record(
    action: Action, *, tenant: models.Model | None, actor: Actor, target: str, data: Mapping[str, Any] | None = None
) -> Event:
    """Append an event to the tenant's chain (None: the platform's), in the caller's transaction.

    Call it last in the transaction: it holds the chain's lock until the commit, so whoever locks something else after
    it may wait for somebody who waits for the chain. `data` is redacted by type (`audit.redaction`).
    """
    assert connection.in_atomic_block, "an audit event belongs into the transaction of what it records"
    chain = locked(tenant.pk if tenant else PLATFORM_CHAIN)
    return record_in(chain, action, tenant_id=tenant.pk if tenant else None, actor=actor, target=target, data=data)


def record_in(
    chain: Chain, action: Action, *, tenant_id: Any, actor: Actor, target: str, data: Mapping[str, Any] | None = None
) -> Event:
    """Append to a chain whose row the caller has locked (`locked`)."""
    event = Event(
        chain=chain,
        tenant_id=tenant_id,
        number=chain.length + 1,
        action=action.value,
        actor_kind=actor.kind,
        actor_id=actor.id,
        address=actor.address,
        user_agent=redaction.clean(actor.user_agent, 255),
        request_id=actor.request_id,
        target=target,
        data=redaction.plain(data or {}),
        created_at=timezone.now(),
        previous=chain.head,
    )
    event.hash = event.compute_hash()
    event.save(force_insert=True)
    Chain.objects.filter(pk=chain.pk).update(length=event.number, head=event.hash)
    return event


def locked(pk: Any) -> Chain:
    """The chain, made if need be, its row locked until the transaction ends."""
    rows = Chain.objects.select_for_update(no_key=True)
    chain = rows.filter(pk=pk).first()
    if chain is None:
        Chain.objects.bulk_create([Chain(pk=pk)], ignore_conflicts=True)
        chain = rows.get(pk=pk)
    return chain
