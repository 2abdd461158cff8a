"""Delivers what is due, a worker's job. May run twice, be killed anywhere, and be late; the row decides who tries."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F, Func, IntegerField, Window
from django.db.models.functions import Now, RowNumber
from django.utils import timezone

from dispatch import at_work, deserted, idle
from webhooks import network, signing
from webhooks.models import Delivery, Endpoint, State
from webhooks.services import TASK, enqueue

# Between attempts; after the last of them the delivery has failed. About a day in all.
PAUSES = tuple(timedelta(seconds=seconds) for seconds in (5, 30, 120, 600, 3600, 3 * 3600, 8 * 3600, 12 * 3600))
LEASE = timedelta(minutes=2)  # longer than an attempt can take
SOON = timedelta(minutes=10)  # later than this is left to beat
KEPT = timedelta(days=30)
MOST_AT_ONCE = 1000  # that are asked for together
MOST_BESIDE = 5  # that are, while messages wait
SWEPT = timedelta(hours=1)  # longer than any transaction that saw an endpoint before it was deleted


def deliver(delivery_id: UUID) -> State | None:
    """Try once, if it is due, and return the state that came of it; None when there was nothing to try."""
    with at_work(delivery_id):
        delivery = _claim(delivery_id)
        return _tried(delivery) if delivery is not None else None


def _tried(delivery: Delivery) -> State | None:
    if not delivery.endpoint.active:
        return _settle(delivery, State.FAILED, _entry(0, "The endpoint is switched off.", 0))
    body = json.dumps(_message(delivery), separators=(",", ":")).encode()
    told = signing.headers(delivery.message_id, int(timezone.now().timestamp()), body, delivery.endpoint.live_salts) | {
        "content-type": "application/json",
        "user-agent": "Lorayard-Webhooks/1",
    }
    outcome = network.post(delivery.endpoint.url, body, told, settings.LORAYARD.webhook_networks)
    entry = _entry(outcome.status, outcome.error, outcome.milliseconds)
    if outcome.accepted:
        return _settle(delivery, State.DELIVERED, entry)
    if delivery.attempts > len(PAUSES):
        return _settle(delivery, State.FAILED, entry)
    return _settle(delivery, State.PENDING, entry, pause=PAUSES[delivery.attempts - 1])


def deliver_due() -> int:
    """Ask for workers for what is due and has none, or lost its own. Returns how many.

    While messages wait, a delivery's own may be among them: then a few are let through, so that nobody's wait for one
    tenant's to end. Tenants take turns, the longest overdue of each first.
    """
    _take_back()
    most = MOST_AT_ONCE if idle(TASK) else MOST_BESIDE
    turn = Window(RowNumber(), partition_by="tenant", order_by="next_at")
    due = Delivery.objects.due().annotate(turn=turn).order_by("turn", "next_at")
    asked = list(due.values_list("pk", flat=True)[:most])
    for delivery in asked:
        enqueue(delivery)
    return len(asked)


def forget_deliveries() -> None:
    """Forget what was settled long ago, and endpoints that were deleted."""
    old = Delivery.objects.exclude(state=State.PENDING).filter(created_at__lt=timezone.now() - KEPT)
    old.delete()
    Endpoint.objects.filter(deleted_at__lt=timezone.now() - SWEPT).delete()


def _take_back() -> None:
    """What a worker had that died meanwhile is due now: it counted an attempt of which the log says nothing."""
    begun = Delivery.objects.filter(state=State.PENDING, next_at__gt=Now()).alias(
        logged=Func("log", function="jsonb_array_length", output_field=IntegerField())
    )
    rows = {row.pk: row for row in begun.filter(attempts__gt=F("logged"))}
    for row in map(rows.__getitem__, deserted(rows)):
        same = Delivery.objects.filter(pk=row.pk, state=State.PENDING, attempts=row.attempts, log=row.log)
        same.update(next_at=Now(), log=_completed(row))


def _claim(delivery_id: UUID) -> Delivery | None:
    """Count an attempt and keep others away while it lasts."""
    with transaction.atomic():
        rows = Delivery.objects.due().select_for_update(of=("self",), skip_locked=True).select_related("endpoint")
        delivery = rows.filter(pk=delivery_id).first()
        if delivery is None:
            return None
        delivery.log = _completed(delivery)
        delivery.attempts += 1
        delivery.next_at = timezone.now() + LEASE
        delivery.save(update_fields=["attempts", "next_at", "log"])
    return delivery


def _completed(delivery: Delivery) -> list[dict[str, Any]]:
    """Its log with a word on each attempt that was counted and never told of, so that it is missed only once."""
    lost = delivery.attempts - len(delivery.log)
    return [*delivery.log, *[_entry(0, "The worker broke off.", 0)] * lost]


def _settle(
    delivery: Delivery, state: State, entry: Mapping[str, Any], pause: timedelta = timedelta(0)
) -> State | None:
    """Compare and set: an attempt that outlived its lease changes nothing."""
    mine = Delivery.objects.filter(pk=delivery.pk, state=State.PENDING, attempts=delivery.attempts)
    next_at = timezone.now() + pause
    with transaction.atomic():
        if mine.update(state=state, next_at=next_at, log=[*delivery.log, entry]) != 1:
            return None
        if state == State.PENDING and pause <= SOON:
            enqueue(delivery.pk, after=pause)
    return state


def _message(delivery: Delivery) -> dict[str, Any]:
    """The body: Standard Webhooks' `type`, `timestamp` and `data`; `timestamp` is when it happened, not when told."""
    return {"type": delivery.event, "timestamp": _text(delivery.created_at), "data": delivery.data}


def _entry(status: int, error: str, milliseconds: int) -> dict[str, Any]:
    return {"at": _text(timezone.now()), "status": status, "error": error, "milliseconds": milliseconds}


def _text(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
