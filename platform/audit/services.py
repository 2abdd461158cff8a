"""Writes events inside the transaction of what they record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.db import connection, models
from django.utils import timezone

from audit import redaction
from audit.models import PLATFORM_CHAIN, Action, Chain, Event

COLUMNS = [field for field in Event._meta.concrete_fields if not field.primary_key]
INSERT = "INSERT INTO audit_event ({}) VALUES ({}) RETURNING id".format(  # noqa: S608 - of our own columns
    ", ".join(str(field.column) for field in COLUMNS), ", ".join("%s" for _ in COLUMNS)
)
LOCK = "SELECT length, head FROM audit_chain WHERE id = %s FOR NO KEY UPDATE"


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
    """Append to a chain whose row the caller has locked (`locked`). A trigger moves the chain's head."""
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
    _insert(event)
    chain.length, chain.head = event.number, event.hash  # as the trigger moved them
    return event


def locked(pk: Any) -> Chain:
    """The chain, made if need be, its row locked until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute(LOCK, [pk])
        row = cursor.fetchone()
        if row is None:
            cursor.execute("INSERT INTO audit_chain (id, length, head) VALUES (%s, 0, '') ON CONFLICT DO NOTHING", [pk])
            cursor.execute(LOCK, [pk])
            row = cursor.fetchone()
    return Chain(pk=pk, length=row[0], head=row[1])


def _insert(event: Event) -> None:
    """Past the ORM's compiler, which would take as long as all the rest of an event."""
    values = [field.get_db_prep_save(getattr(event, field.attname), connection) for field in COLUMNS]
    with connection.cursor() as cursor:
        cursor.execute(INSERT, values)
        (event.pk,) = cursor.fetchone()
    event._state.adding, event._state.db = False, connection.alias
