"""Makes and changes a tenant's endpoints, and hands events to those that want them."""

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from audit.models import Action
from audit.redaction import difference, snapshot
from audit.services import Actor, record
from dispatch import after_commit
from tenants.errors import Conflict, PlatformError
from tenants.models import Tenant
from webhooks import network, signing
from webhooks.models import EVENT, SUBSCRIPTION, Delivery, Endpoint, new_salt

TASK = "jobs.tasks.deliver_webhook"
MOST_ENDPOINTS = 20
GRACE = timedelta(hours=24)


class WebhookRefused(PlatformError):
    code = "invalid_webhook"


class WebhookExists(Conflict):
    code = "webhook_exists"
    param = "url"


def emit(tenant: Tenant, event: str, data: Mapping[str, Any]) -> None:
    """Tell the tenant's endpoints of an event, in the caller's transaction; workers deliver it after the commit.

    `data` holds ids and states, never secrets or prompts. Before or after the audit event, whichever reads better.
    """
    assert connection.in_atomic_block, "an event belongs into the transaction of what it tells of"
    assert EVENT.fullmatch(event), event
    endpoints = Endpoint.objects.for_tenant(tenant).filter(active=True)
    deliveries = [
        Delivery(tenant=tenant, endpoint=endpoint, event=event, data=dict(data))
        for endpoint in endpoints
        if endpoint.wants(event)
    ]
    Delivery.objects.bulk_create(deliveries)
    for delivery in deliveries:
        enqueue(delivery.pk)


def enqueue(delivery: UUID, *, after: timedelta = timedelta(0)) -> None:
    """Ask for a worker once the transaction is through. Should the queue be down, `deliver_due` finds the delivery."""
    after_commit(TASK, str(delivery), countdown=after.total_seconds())


def create_endpoint(tenant: Tenant, url: str, events: Iterable[str], *, actor: Actor) -> tuple[Endpoint, str]:
    """A new endpoint and its secret, which is never shown again. Raises WebhookRefused, WebhookExists."""
    endpoint = Endpoint(tenant=tenant, url=_checked_url(url), events=_checked_events(events))
    with transaction.atomic():
        Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)  # so that the count below is true
        if Endpoint.objects.for_tenant(tenant).count() >= MOST_ENDPOINTS:
            raise WebhookRefused(f"A tenant has at most {MOST_ENDPOINTS} endpoints.")
        _save(endpoint, force_insert=True)
        record(Action.WEBHOOK_CREATED, tenant=tenant, actor=actor, target=str(endpoint), data=_public(endpoint))
    return endpoint, signing.secret_of(endpoint.salt)


@transaction.atomic
def change_endpoint(endpoint: Endpoint, *, actor: Actor, **changes: Any) -> Endpoint:
    """Set `url`, `events` or `active`. What stays the same is neither written nor recorded."""
    assert changes.keys() <= {"url", "events", "active"}
    endpoint = _locked(endpoint)
    before = _public(endpoint)
    checks: dict[str, Callable[[Any], Any]] = {"url": _checked_url, "events": _checked_events, "active": bool}
    wanted = {name: checks[name](value) for name, value in changes.items()}
    fields = [name for name, value in wanted.items() if getattr(endpoint, name) != value]
    if not fields:
        return endpoint
    for name in fields:
        setattr(endpoint, name, wanted[name])
    _save(endpoint, update_fields=fields)
    data = difference(before, _public(endpoint))
    record(Action.WEBHOOK_CHANGED, tenant=endpoint.tenant, actor=actor, target=str(endpoint), data=data)
    return endpoint


@transaction.atomic
def rotate_secret(endpoint: Endpoint, *, actor: Actor) -> tuple[Endpoint, str]:
    """Give the endpoint a new secret. For 24 hours deliveries carry the old one's signature too."""
    endpoint = _locked(endpoint)
    before = snapshot(endpoint, ["salt", "former_until"])
    endpoint.former_salt, endpoint.former_until = endpoint.salt, timezone.now() + GRACE
    endpoint.salt = new_salt()
    _save(endpoint, update_fields=["salt", "former_salt", "former_until"])
    data = difference(before, snapshot(endpoint, ["salt", "former_until"]))
    record(Action.WEBHOOK_ROTATED, tenant=endpoint.tenant, actor=actor, target=str(endpoint), data=data)
    return endpoint, signing.secret_of(endpoint.salt)


@transaction.atomic
def delete_endpoint(endpoint: Endpoint, *, actor: Actor) -> None:
    """Send the endpoint nothing any more; it and its log are swept soon after."""
    if Endpoint.objects.filter(pk=endpoint.pk, deleted_at=None).update(deleted_at=timezone.now(), active=False) == 1:
        data = _public(endpoint)
        record(Action.WEBHOOK_DELETED, tenant=endpoint.tenant, actor=actor, target=str(endpoint), data=data)


@transaction.atomic
def ping(endpoint: Endpoint) -> Delivery:
    """Send a `webhook.ping` to this endpoint alone, whatever it subscribes to."""
    delivery = Delivery.objects.create(tenant=endpoint.tenant, endpoint=endpoint, event="webhook.ping")
    enqueue(delivery.pk)
    return delivery


def _locked(endpoint: Endpoint) -> Endpoint:
    return Endpoint.objects.select_for_update(of=("self",), no_key=True).select_related("tenant").get(pk=endpoint.pk)


def _save(endpoint: Endpoint, **how: Any) -> None:
    try:
        with transaction.atomic():
            endpoint.save(**how)
    except IntegrityError as error:
        raise WebhookExists("There is an endpoint for this URL already.") from error


def _checked_url(url: str) -> str:
    try:
        network.check_url(url, settings.LORAYARD.webhook_networks)
    except network.Refused as refusal:
        raise WebhookRefused(str(refusal), param="url") from None
    return url


def _checked_events(events: Iterable[str]) -> list[str]:
    wanted = sorted(set(events))
    wrong = next((event for event in wanted if not SUBSCRIPTION.fullmatch(event)), None)
    if wrong is not None or not wanted:
        raise WebhookRefused("Name events like rollout.paused, families like rollout.*, or *.", param="events")
    return wanted


def _public(endpoint: Endpoint) -> dict[str, Any]:
    """What the audit chain may keep: paths and queries of such URLs often hold a token, so of the URL only its host."""
    parts = urlsplit(endpoint.url)
    return {"url": f"{parts.scheme}://{parts.netloc}", "events": endpoint.events, "active": endpoint.active}
