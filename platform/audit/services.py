"""Writes events inside the transaction of what they record, and finds whatever was done to them since."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection, models
from django.utils import timezone

from audit.models import PLATFORM_CHAIN, Action, Chain, Event


@dataclass(frozen=True)
class Actor:
    """Who did it, and from where. `id` is a key's or a user's id, never a secret."""

    kind: Literal["user", "key", "system"]
    id: str
    address: str = ""
    request_id: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


SYSTEM = Actor(kind="system", id="lorayard")


@dataclass(frozen=True)
class Problem:
    """One place where a chain no longer is what was written."""

    chain: str
    number: int
    kind: Literal["edited", "missing", "reordered", "inserted"]
    message: str

    def __str__(self) -> str:
        return f"{self.chain} #{self.number}: {self.kind}: {self.message}"


def record(
    action: Action, *, tenant: models.Model | None, actor: Actor, target: str, data: Mapping[str, Any] | None = None
) -> Event:
    """Append an event to the tenant's chain (None: the platform's), in the caller's transaction.

    Call it last in the transaction: it holds the chain's lock until the commit. Fractions are kept as text, since
    PostgreSQL and Python do not print them alike.
    """
    assert connection.in_atomic_block, "an audit event belongs into the transaction of what it records"
    chain = _locked(tenant.pk if tenant else PLATFORM_CHAIN)
    event = Event(
        chain=chain,
        tenant_id=tenant.pk if tenant else None,
        number=chain.length + 1,
        action=action.value,
        actor_kind=actor.kind,
        actor_id=actor.id,
        address=actor.address,
        request_id=actor.request_id,
        target=target,
        data=json.loads(json.dumps(data or {}, cls=DjangoJSONEncoder, allow_nan=False), parse_float=str),
        created_at=timezone.now(),
        previous=chain.head,
    )
    event.hash = event.compute_hash()
    event.save(force_insert=True)
    Chain.objects.filter(pk=chain.pk).update(length=event.number, head=event.hash)
    return event


def verify(tenant: models.Model | None = None) -> list[Problem]:
    """Every edited, missing, inserted or reordered event of the tenant's chain; with None, of all chains."""
    chains = Chain.objects.order_by("pk")
    if tenant is not None:
        chains = chains.filter(pk=tenant.pk)
    return [problem for chain in chains for problem in _problems(chain)]


def _locked(pk: Any) -> Chain:
    locked = Chain.objects.select_for_update(no_key=True)
    chain = locked.filter(pk=pk).first()
    if chain is None:
        Chain.objects.bulk_create([Chain(pk=pk)], ignore_conflicts=True)
        chain = locked.get(pk=pk)
    return chain


def _problems(chain: Chain) -> Iterator[Problem]:
    name = str(chain)
    number, previous = 0, ""
    events = chain.events.order_by("number")
    for event in events.filter(number__lte=chain.length).iterator():
        if event.number != number + 1:
            yield Problem(name, number + 1, "missing", f"events {number + 1} to {event.number - 1} are gone")
        elif event.previous != previous:
            yield Problem(name, event.number, "reordered", "does not follow the event before it")
        if event.hash != event.compute_hash():
            yield Problem(name, event.number, "edited", "its content does not give its hash")
        number, previous = event.number, event.hash
    if number != chain.length:
        yield Problem(name, number + 1, "missing", f"events {number + 1} to {chain.length} are gone")
    elif previous != chain.head:
        yield Problem(name, number, "edited", "the last event is not the one that was written")
    for event in events.filter(number__gt=models.F("chain__length")):
        yield Problem(name, event.number, "inserted", "stands behind the chain's head")
