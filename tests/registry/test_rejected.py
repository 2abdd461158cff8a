"""Rejected versions and their reports are kept for a while, not for ever."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from audit.models import Event
from audit.services import SYSTEM
from audit.verification import verify
from jobs import tasks
from registry.models import State, Version
from registry.services import delete_version, forget_rejected, release_version
from tenants.models import Tenant

Push = Callable[..., Version]
VERSIONS = "/api/v1/adapters/support/versions"


@pytest.fixture
def bad(folder: Path) -> Path:
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def older(days: float) -> None:
    Version.objects.update(changed_at=timezone.now() - timedelta(days=days))


def numbers(tenant: Tenant) -> set[int]:
    return set(Version.objects.for_tenant(tenant).values_list("number", flat=True))


def test_an_old_report_is_forgotten_on_the_record_and_what_is_ready_never(
    acme: Tenant, globex: Tenant, push: Push, bad: Path, client_of: Callable[..., APIClient]
) -> None:
    for which in (0, bad, 1):
        push(acme, "support", which)
    push(globex, "support", bad)
    older(89)
    assert forget_rejected() == 0
    older(91)
    tasks.forget_rejected.apply(throw=True)
    assert numbers(acme) == {1, 3}
    assert numbers(globex) == {1}  # the newest of its adapter
    event = Event.objects.for_tenant(acme).get(action="adapter:version:forgotten")
    assert (event.target, event.data["rules"]) == ("acme/support@v2", ["truncated"])
    assert verify(acme) == []
    assert client_of(acme).get(f"{VERSIONS}/2").status_code == 404
    assert forget_rejected() == 0


def test_no_number_is_given_twice(acme: Tenant, push: Push, bad: Path) -> None:
    for _ in range(2):
        push(acme, "support", bad)
    older(91)
    assert forget_rejected() == 1
    assert push(acme, "support", bad).number == 3
    older(91)
    assert forget_rejected() == 1
    assert numbers(acme) == {3}


def test_a_report_that_somebody_deleted_goes_too_and_one_of_use_stays(acme: Tenant, push: Push, bad: Path) -> None:
    deleted, ready = push(acme, "support", bad), push(acme, "support")
    push(acme, "support", 1)
    for version in (deleted, push(acme, "other", bad)):
        delete_version(version, actor=SYSTEM)
    older(91)
    assert forget_rejected() == 0  # a worker has not yet seen that nothing is left of them
    assert release_version(deleted.pk)
    older(91)
    assert forget_rejected() == 1
    assert numbers(acme) == {1, 2, 3}  # 1 is the other adapter's
    assert Version.objects.get(pk=ready.pk).state == State.READY


def test_nought_keeps_them_for_ever(acme: Tenant, push: Push, bad: Path, settings: Any) -> None:
    push(acme, "support", bad)
    push(acme, "support")
    older(10_000)
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"rejected_days": 0})
    assert forget_rejected() == 0
