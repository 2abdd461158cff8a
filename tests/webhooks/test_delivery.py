"""Deliveries to a real receiver on loopback."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from audit.models import Action
from audit.services import SYSTEM, record
from audit.verification import verify
from tenants.models import Tenant
from tests.webhooks.conftest import Commits, Receiver
from webhooks import delivery, services
from webhooks.models import Delivery, Endpoint, State

Emits = Callable[..., Delivery]
Attempts = Callable[[Delivery], Delivery]


def genuine(secret: str, headers: dict[str, str], body: bytes) -> list[bool]:
    """Verifies by the letter of Standard Webhooks, with nothing of ours."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    right = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return [signature == right for signature in headers["webhook-signature"].split()]


def test_an_event_arrives_signed(
    acme: Tenant, receiver: Receiver, loopback_allowed: None, emitted: Emits, attempt: Attempts
) -> None:
    _, secret = services.create_endpoint(acme, receiver.url, ["rollout.*"], actor=SYSTEM)
    row = attempt(emitted(acme, "rollout.paused", {"rollout": "r1", "at": timezone.now()}))
    assert (row.state, row.attempts, row.log[0]["status"]) == (State.DELIVERED, 1, 200)
    ((headers, body),) = receiver.got
    assert genuine(secret, headers, body) == [True]
    assert abs(int(headers["webhook-timestamp"]) - timezone.now().timestamp()) < 30
    message = json.loads(body)
    assert (message["type"], message["data"]["rollout"], headers["content-type"]) == (
        "rollout.paused",
        "r1",
        "application/json",
    )


def test_only_who_subscribed_hears_of_it_and_never_a_stranger(
    acme: Tenant,
    globex: Tenant,
    receiver: Receiver,
    loopback_allowed: None,
    django_capture_on_commit_callbacks: Commits,
) -> None:
    everything, _ = services.create_endpoint(acme, receiver.url, ["*"], actor=SYSTEM)
    services.create_endpoint(acme, f"{receiver.url}/2", ["alias.*", "rollout.paused"], actor=SYSTEM)
    off, _ = services.create_endpoint(acme, f"{receiver.url}/3", ["*"], actor=SYSTEM)
    services.change_endpoint(off, active=False, actor=SYSTEM)
    services.create_endpoint(globex, receiver.url, ["*"], actor=SYSTEM)
    with django_capture_on_commit_callbacks() as asked:
        services.emit(acme, "version.ready", {})
    assert [row.endpoint for row in Delivery.objects.all()] == [everything]
    assert len(asked) == 1


def test_after_a_rotation_both_secrets_verify_for_a_day(
    acme: Tenant, receiver: Receiver, loopback_allowed: None, emitted: Emits, attempt: Attempts
) -> None:
    endpoint, old = services.create_endpoint(acme, receiver.url, ["*"], actor=SYSTEM)
    _, new = services.rotate_secret(endpoint, actor=SYSTEM)
    row = attempt(emitted(acme))
    headers, body = receiver.got[0]
    assert (genuine(new, headers, body), genuine(old, headers, body)) == ([True, False], [False, True])
    Endpoint.objects.update(former_until=timezone.now())
    Delivery.objects.filter(pk=row.pk).update(state=State.PENDING)
    attempt(row)
    headers, body = receiver.got[1]
    assert (genuine(new, headers, body), genuine(old, headers, body)) == ([True], [False])


def test_a_receiver_that_fails_is_tried_again_with_the_same_id(
    acme: Tenant, endpoint: Endpoint, receiver: Receiver, emitted: Emits, attempt: Attempts
) -> None:
    receiver.answers = [500, 404]
    row = attempt(emitted(acme))
    assert row.state == State.PENDING
    assert timedelta(seconds=3) < row.next_at - timezone.now() <= timedelta(seconds=5)
    assert delivery.deliver(row.pk) is None  # it is not yet time
    row = attempt(attempt(row))
    assert (row.state, [entry["status"] for entry in row.log]) == (State.DELIVERED, [500, 404, 200])
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert delivery.deliver(row.pk) is None
    assert len(receiver.got) == 3


def test_a_receiver_that_never_answers_well_is_given_up(
    acme: Tenant, endpoint: Endpoint, receiver: Receiver, emitted: Emits, attempt: Attempts
) -> None:
    receiver.answers = [503] * 20
    row = emitted(acme)
    for _ in range(12):
        attempt(row)
    assert (row.state, row.attempts) == (State.FAILED, len(delivery.PAUSES) + 1)
    assert len(receiver.got) == row.attempts


def test_a_redirect_is_not_followed(
    acme: Tenant, endpoint: Endpoint, receiver: Receiver, emitted: Emits, attempt: Attempts
) -> None:
    receiver.answers, receiver.headers = [307], {"Location": receiver.url}
    assert attempt(emitted(acme)).state == State.PENDING
    assert len(receiver.got) == 1


def test_a_network_that_is_no_longer_allowed_is_not_reached(
    acme: Tenant, endpoint: Endpoint, receiver: Receiver, emitted: Emits, attempt: Attempts, settings: Any
) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"webhook_allow": "", "webhook_networks": ()})
    row = attempt(emitted(acme))
    assert (row.state, row.log[0]["status"], row.log[0]["error"]) == (State.PENDING, 0, "Only https is taken.")
    assert receiver.got == []


def test_what_is_switched_off_meanwhile_is_not_delivered(
    acme: Tenant, endpoint: Endpoint, receiver: Receiver, emitted: Emits, attempt: Attempts
) -> None:
    row = emitted(acme)
    services.change_endpoint(endpoint, active=False, actor=SYSTEM)
    assert attempt(row).state == State.FAILED
    assert receiver.got == []


def test_a_delivery_whose_worker_died_is_handed_out_again(
    acme: Tenant,
    endpoint: Endpoint,
    emitted: Emits,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Commits,
) -> None:
    row = emitted(acme)
    assert delivery._claim(row.pk) is not None
    assert delivery._claim(row.pk) is None  # while the lease lasts
    Delivery.objects.update(next_at=timezone.now())
    monkeypatch.setattr(delivery, "idle", lambda _: True)
    with django_capture_on_commit_callbacks() as asked:
        assert delivery.deliver_due() == 1
    assert len(asked) == 1


def test_a_delivery_whose_worker_died_is_due_at_once_and_one_that_is_tried_is_not(
    acme: Tenant,
    endpoint: Endpoint,
    emitted: Emits,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Commits,
) -> None:
    row = emitted(acme)
    monkeypatch.setattr(delivery, "idle", lambda _: True)
    assert delivery._claim(row.pk) is not None
    with monkeypatch.context() as patch, django_capture_on_commit_callbacks() as asked:
        patch.setattr(delivery, "deserted", lambda _: [])
        assert (delivery.deliver_due(), asked) == (0, [])
    with django_capture_on_commit_callbacks() as asked:
        assert delivery.deliver_due() == 1
    assert len(asked) == 1


def test_while_messages_wait_a_few_of_each_tenant_s_longest_overdue_are_let_through(
    endpoint: Endpoint, receiver: Receiver, acme: Tenant, globex: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, hour = services.create_endpoint(globex, receiver.url, ["*"], actor=SYSTEM)[0], timezone.now()
    for minutes, to in [*((30 + number, endpoint) for number in range(20)), (1, late), (2, late)]:
        row = Delivery(tenant=to.tenant, endpoint=to, event="alias.moved", next_at=hour - timedelta(minutes=minutes))
        row.save()
    asked: list[UUID] = []
    monkeypatch.setattr(delivery, "enqueue", asked.append)
    monkeypatch.setattr(delivery, "idle", lambda _: False)
    assert delivery.deliver_due() == 5
    overdue = [hour - Delivery.objects.get(pk=pk).next_at for pk in asked]
    assert overdue == [timedelta(minutes=minutes) for minutes in (49, 2, 48, 1, 47)]
    monkeypatch.setattr(delivery, "idle", lambda _: True)
    assert delivery.deliver_due() == 22


@pytest.mark.parametrize("swept", [True, False], ids=["by-the-sweep", "by-the-lease"])
def test_a_worker_s_death_costs_one_attempt_and_later_pauses_are_kept(
    swept: bool, endpoint: Endpoint, receiver: Receiver, acme: Tenant, emitted: Emits, attempt: Attempts
) -> None:
    row = emitted(acme)
    assert delivery._claim(row.pk) is not None
    if swept:
        delivery.deliver_due()
    receiver.answers = [500]
    row = attempt(row)
    assert (row.log[0]["status"], row.log[0]["error"]) == (0, "The worker broke off.")
    assert (row.state, row.attempts, len(row.log)) == (State.PENDING, 2, 2)
    delivery.deliver_due()
    row.refresh_from_db()
    assert row.next_at > timezone.now() + timedelta(seconds=20)  # as after any second attempt


def test_what_settles_while_the_sweep_looks_is_not_taken_back(
    endpoint: Endpoint, receiver: Receiver, acme: Tenant, emitted: Emits, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = emitted(acme)
    claimed = delivery._claim(row.pk)
    assert claimed is not None

    def settled_meanwhile(these: Iterable[UUID]) -> list[UUID]:
        delivery._settle(claimed, State.PENDING, delivery._entry(500, "", 1), pause=delivery.LEASE)
        return list(these)

    monkeypatch.setattr(delivery, "deserted", settled_meanwhile)
    delivery.deliver_due()
    row.refresh_from_db()
    assert len(row.log) == 1
    assert row.next_at > timezone.now()


def test_what_was_settled_long_ago_is_forgotten(acme: Tenant, endpoint: Endpoint, emitted: Emits) -> None:
    emitted(acme)
    Delivery.objects.update(created_at=timezone.now() - timedelta(days=31))
    delivery.forget_deliveries()
    assert Delivery.objects.count() == 1
    Delivery.objects.update(state=State.DELIVERED)
    delivery.forget_deliveries()
    assert Delivery.objects.count() == 0


def test_a_deleted_endpoint_and_its_log_are_swept(acme: Tenant, endpoint: Endpoint, emitted: Emits) -> None:
    emitted(acme)
    services.delete_endpoint(endpoint, actor=SYSTEM)
    services.delete_endpoint(endpoint, actor=SYSTEM)
    assert services.create_endpoint(acme, endpoint.url, ["*"], actor=SYSTEM)  # the URL is free at once
    delivery.forget_deliveries()
    assert Delivery.objects.exists()
    Endpoint.objects.exclude(deleted_at=None).update(deleted_at=timezone.now() - delivery.SWEPT)
    delivery.forget_deliveries()
    assert not Delivery.objects.exists()
    assert Endpoint.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_endpoints_that_change_while_events_are_emitted_deadlock_with_nothing(
    acme: Tenant, receiver: Receiver, loopback_allowed: None
) -> None:
    start, faults = threading.Barrier(12), []

    def repeatedly(work: Callable[[int], object]) -> None:
        try:
            start.wait(30)
            for number in range(5):
                with transaction.atomic():
                    work(number)
        except Exception as error:
            faults.append(error)
        finally:
            connection.close()

    def told_last(_: int) -> None:
        record(Action.KEY_ISSUED, tenant=acme, actor=SYSTEM, target="key:1")
        services.emit(acme, "alias.moved", {})

    def told_first(_: int) -> None:
        services.emit(acme, "alias.moved", {})
        record(Action.KEY_ISSUED, tenant=acme, actor=SYSTEM, target="key:1")

    def comes_and_goes(number: int) -> None:
        name = f"{receiver.url}/{threading.get_ident()}/{number}"
        endpoint, _ = services.create_endpoint(acme, name, ["*"], actor=SYSTEM)
        services.rotate_secret(endpoint, actor=SYSTEM)
        services.change_endpoint(endpoint, url=f"{name}/2", actor=SYSTEM)
        services.delete_endpoint(endpoint, actor=SYSTEM)

    def swept(_: int) -> None:
        delivery.deliver_due()
        delivery.forget_deliveries()

    threads = [
        threading.Thread(target=repeatedly, args=(work,))
        for work in (told_last, told_first, comes_and_goes, swept)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert verify() == []


def test_an_event_goes_with_the_transaction_that_it_tells_of(acme: Tenant, endpoint: Endpoint) -> None:
    with transaction.atomic():
        services.emit(acme, "rollout.paused", {})
        transaction.set_rollback(True)
    assert not Delivery.objects.exists()


def test_a_ping_and_its_log_are_seen_over_the_api(
    acme: Tenant, endpoint: Endpoint, receiver: Receiver, client_of: Callable[..., APIClient], attempt: Attempts
) -> None:
    client, path = client_of(acme), f"/api/v1/webhooks/{endpoint.pk}"
    assert client.post(f"{path}/ping").status_code == 202
    attempt(Delivery.objects.get())
    (row,) = client.get(f"{path}/deliveries").json()["results"]
    assert (row["event"], row["state"], row["log"][0]["status"]) == ("webhook.ping", "delivered", 200)
    assert receiver.got[0][0]["webhook-id"] == row["message_id"]
