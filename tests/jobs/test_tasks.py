"""Uploads as a worker meets them: through Redis, after the commit, with a real Celery worker at the other end."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.core.files import File
from django.db import connection, transaction

import dispatch
from audit.services import SYSTEM
from dispatch.sending import UNSENT
from jobs import tasks
from registry.models import State, Version
from registry.services import ensure_adapter, register_base_model, upload_version
from tenants.models import Tenant
from tests.processes import wait_for
from tests.workers import working


@pytest.fixture
def worker(transactional_db: None, settings: Any, tmp_path: Path) -> Iterator[None]:
    home = tmp_path / "home"
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"home": home, "store_url": f"file://{home}/store"})
    with working("celery", "periodic"):
        yield


@pytest.fixture
def folder(tiny_base_model: Path, make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", tiny_base_model, rank=2)


def upload(tenant: Tenant, folder: Path) -> Version:
    paths = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    files = [File(path.open("rb"), name=path.name) for path in paths]
    return upload_version(ensure_adapter(tenant, "support", actor=SYSTEM), files, actor=SYSTEM)


def settled(version: Version) -> Callable[[], bool]:
    return lambda: not Version.objects.pending().filter(pk=version.pk).exists()


@pytest.mark.django_db(transaction=True)
def test_a_worker_makes_an_upload_ready_after_the_commit(
    acme: Tenant, worker: None, tiny_base_model: Path, folder: Path
) -> None:
    register_base_model(str(tiny_base_model))
    with transaction.atomic():
        version = upload(acme, folder)
        assert Version.objects.get(pk=version.pk).state == State.UPLOADED
    wait_for(settled(version), 60, "validation")
    version.refresh_from_db()
    assert (version.state, {finding["severity"] for finding in version.findings} - {"note"}) == (State.READY, set())
    tasks.validate_version.apply(args=[str(version.pk)], throw=True)  # delivered once more: nothing happens
    assert Version.objects.get(pk=version.pk).attempts == 1


@pytest.mark.django_db(transaction=True)
def test_an_upload_stands_while_the_queue_is_down_and_is_validated_later(
    acme: Tenant,
    worker: None,
    tiny_base_model: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_base_model(str(tiny_base_model))
    with monkeypatch.context() as patch:
        down = Celery(broker="redis://127.0.0.1:1/0", set_as_current=False)
        unsent = UNSENT._value.get()
        patch.setattr("dispatch.sending.PATIENCE", 0.0)
        patch.setattr("dispatch.sending.app_or_default", lambda: down)
        version = upload(acme, folder)
        assert dispatch.flush(60)
    assert UNSENT._value.get() == unsent + 1
    Version.objects.filter(pk=version.pk).update(changed_at="2020-01-01T00:00:00Z")
    tasks.revalidate_stale.delay()
    wait_for(settled(version), 60, "validation")
    assert Version.objects.get(pk=version.pk).state == State.READY


def test_a_broken_audit_chain_is_shouted_about(acme: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    tasks.verify_audit.apply(throw=True)
    assert "chain" not in caplog.text
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute("UPDATE audit_event SET target = 'x'")
        cursor.execute("SET LOCAL session_replication_role = origin")
    tasks.verify_audit.apply(throw=True)
    assert [record.levelno for record in caplog.records if "chain" in record.getMessage()] == [logging.CRITICAL]
