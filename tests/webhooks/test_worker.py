"""Webhooks as workers send them: through Redis, after the commit, tried again by Celery."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import transaction

from audit.services import SYSTEM
from tenants.models import Tenant
from tests.processes import wait_for
from tests.webhooks.conftest import Receiver
from tests.workers import working
from webhooks import delivery, services
from webhooks.models import Delivery, State


@pytest.fixture
def worker(transactional_db: None) -> Iterator[None]:
    with working("webhooks"):
        yield


def test_an_event_is_delivered_after_the_commit_and_tried_again(
    worker: None, acme: Tenant, receiver: Receiver, loopback_allowed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PAUSES", (timedelta(seconds=0.3),) * 3)
    services.create_endpoint(acme, receiver.url, ["alias.*"], actor=SYSTEM)
    receiver.answers = [500, 302]
    with transaction.atomic():
        services.emit(acme, "alias.moved", {"to": 2})
        assert receiver.got == []
    wait_for(lambda: Delivery.objects.get().state != State.PENDING, 60, "the delivery")
    row = Delivery.objects.get()
    assert (row.state, [entry["status"] for entry in row.log]) == (State.DELIVERED, [500, 302, 200])
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
