"""What a tenant may store: whatever is stored, waits or was announced counts, also for many who ask at once."""

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.db import connection
from safetensors.torch import load_file, save_file

from audit.services import SYSTEM
from registry.intake import UploadState
from registry.models import Adapter, BaseModel, State, Version
from registry.services import (
    create_adapter,
    create_upload,
    ensure_adapter,
    upload_version,
)
from tenants.errors import QuotaExceeded
from tenants.models import Tenant
from tenants.services import change_tenant, create_tenant
from tests.registry.callers import Caller, LeftBehind, at_once, only
from tests.registry.test_upload import CONFIG, WEIGHTS

SET = b'{"messages": [{"role": "user", "content": "hi"}], "scorer": "exact", "expected": "hello"}'


def quota(tenant: Tenant, **limits: int) -> None:
    change_tenant(tenant, actor=SYSTEM, **{f"quota_{name}": value for name, value in limits.items()})


def test_a_quota_counts_what_is_stored_waits_and_was_announced(
    acme: Tenant, caller: Caller, push: Callable[..., Version], stranger: Caller
) -> None:
    stored = push(acme, "support").size
    push(acme, "again")  # the same files once more: they are stored once
    waiting = push(acme, "other", 1, validate=False).size
    quota(acme, bytes=stored + waiting + 100)
    caller.create(60)
    error = caller.create(41, status=403)["error"]
    assert (error["code"], error["param"]) == ("quota_exceeded", "bytes")
    used = stored + waiting + 60
    assert (error["used"], error["requested"], error["limit"]) == (used, 41, used + 40)
    assert all(f"{number:,}" in error["message"] for number in (used, 41, used + 40))
    caller.create(40)
    stranger.create(10_000)
    shown = caller.get("/api/v1/quotas")
    assert shown["bytes"] == {"used": used + 40, "limit": used + 40}
    assert shown["versions"] == {"used": 3, "limit": 1000}
    assert shown["uploads"] == {"used": 2, "limit": 100}


def test_versions_and_uploads_are_counted_too(
    acme: Tenant, caller: Caller, push: Callable[..., Version], left_behind: LeftBehind, folder: Path
) -> None:
    push(acme, "support")
    quota(acme, versions=1, uploads=1)
    before = left_behind()
    done = caller.whole(b"abc")
    assert caller.create(1, status=403)["error"]["quota"] == "uploads"
    files = {"files": [done["file"]["id"]]}
    assert caller.call("/api/v1/adapters/support/versions", files, 403)["error"]["quota"] == "versions"
    assert only(done).state == UploadState.COMPLETED
    with pytest.raises(QuotaExceeded):
        upload_version(ensure_adapter(acme, "support", actor=SYSTEM), [ContentFile(b"x", CONFIG)], actor=SYSTEM)
    assert left_behind() == before | {f"quarantine/uploads/{only(done).pk}/whole"}


def test_an_archive_that_unpacks_to_more_than_the_quota_is_rejected_and_leaves_nothing(
    acme: Tenant, base: BaseModel, folder: Path, tmp_path: Path, push: Callable[..., Version], left_behind: LeftBehind
) -> None:
    save_file({name: tensor * 0 for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(packed / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (CONFIG, WEIGHTS):
            archive.write(folder / name, name)
    quota(acme, bytes=(packed / "a.zip").stat().st_size)
    version = push(acme, "support", packed)
    assert (version.state, version.findings[0]["rule"]) == (State.REJECTED, "quota-exceeded")
    assert left_behind() <= {"store/.lock"}


@pytest.mark.django_db(transaction=True)
def test_of_many_who_ask_at_once_no_more_get_in_than_the_quota_allows() -> None:
    acme = create_tenant("acme", "Acme", actor=SYSTEM)
    quota(acme, bytes=35)
    outcomes: list[str] = []

    def ask() -> None:
        try:
            create_upload(acme, filename="a", purpose="adapter", bytes=10, actor=SYSTEM)
            outcomes.append("in")
        except QuotaExceeded:
            outcomes.append("out")
        finally:
            connection.close()

    at_once([ask] * 8)
    assert sorted(outcomes) == ["in"] * 3 + ["out"] * 5


def test_adapters_keys_and_sets_are_counted_as_well(
    acme: Tenant, caller: Caller, stranger: Caller, base: BaseModel
) -> None:
    quota(acme, adapters=1, keys=2, evaluation_bytes=len(SET))
    assert caller.call("/api/v1/adapters", {"name": "one"}, 201)
    error = caller.call("/api/v1/adapters", {"name": "two"}, 403)["error"]
    assert (error["code"], error["quota"], error["used"], error["limit"]) == ("quota_exceeded", "adapters", 1, 1)
    form = {"adapter_config.json": io.BytesIO(b"{}")}
    caller.call("/api/v1/adapters/two/versions", form, 403, format="multipart")
    made = caller.call("/api/v1/keys", {"name": "k", "scopes": ["inference"]}, 201)
    assert caller.call("/api/v1/keys", {"name": "k", "scopes": ["inference"]}, 403)["error"]["quota"] == "keys"
    rotate = f"/api/v1/keys/{made['id']}/rotate"
    assert caller.call(rotate, {"grace_seconds": 60}, 403)["error"]["quota"] == "keys"
    made = caller.call(rotate, {"grace_seconds": 0}, 201)
    caller.call(f"/api/v1/keys/{made['id']}/revoke", {})
    caller.call("/api/v1/keys", {"name": "k", "scopes": ["inference"]}, 201)
    send_set(caller, "first", 201)
    assert send_set(caller, "second", 403)["error"]["quota"] == "evaluation_bytes"
    shown = caller.get("/api/v1/quotas")
    assert shown["adapters"] == {"used": 1, "limit": 1}
    assert shown["keys"] == {"used": 2, "limit": 2}
    assert shown["evaluation_bytes"] == {"used": len(SET), "limit": len(SET)}
    stranger.call("/api/v1/adapters", {"name": "two"}, 201)
    send_set(stranger, "second", 201)


def send_set(caller: Caller, name: str, status: int) -> Any:
    form = {"name": name, "file": io.BytesIO(SET)}
    return caller.call("/api/v1/evaluation-sets", form, status, format="multipart")


@pytest.mark.django_db(transaction=True)
def test_of_many_who_make_the_last_adapter_at_once_one_does(acme: Tenant, base: BaseModel) -> None:
    quota(acme, adapters=1)
    refused: list[QuotaExceeded] = []

    def make(name: str) -> None:
        try:
            create_adapter(acme, name, actor=SYSTEM)
        except QuotaExceeded as error:
            refused.append(error)
        finally:
            connection.close()

    at_once([partial(make, f"a{number}") for number in range(4)])
    assert (Adapter.objects.count(), len(refused)) == (1, 3)


def test_a_full_quota_of_one_kind_stands_in_nobody_elses_way(acme: Tenant, caller: Caller, base: BaseModel) -> None:
    """Such as one that an operator has lowered."""
    quota(acme, keys=0, versions=0, evaluation_bytes=0)
    caller.call("/api/v1/adapters", {"name": "one"}, 201)
    caller.create(10)
