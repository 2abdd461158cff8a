"""A version goes only when nothing needs it; then the store, and the engine's device, host and disk, let go of it."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from adapters.manifest import Manifest
from adapters.store import Store
from audit.models import Event
from audit.services import SYSTEM
from config import env
from inference.client import EngineClient, Generation, Residency, Sampling
from jobs import tasks
from registry.errors import ModelNotFound, VersionNeeded
from registry.models import State, Version
from registry.services import (
    NotReleased,
    archive_version,
    delete_adapter,
    delete_version,
    move_alias,
    release_overdue,
    release_version,
    resolve,
    retirement,
    rollback_alias,
)
from tenants.models import Tenant
from tests.processes import wait_for

Clients = Callable[..., APIClient]
Push = Callable[..., Version]
TOLD = env.load()
VERSIONS = "/api/v1/adapters/support/versions"


@pytest.fixture
def free(acme: Tenant, push: Push) -> Version:
    """The second version of an adapter; nothing needs it."""
    push(acme, "support")
    return push(acme, "support", 1)


# What needs a version


def test_a_version_that_an_alias_names_stays(acme: Tenant, globex: Tenant, free: Version, client_of: Clients) -> None:
    client, stranger = client_of(acme), client_of(globex)
    for refused in (client.delete(f"{VERSIONS}/1"), client.post(f"{VERSIONS}/1/archive")):
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_in_use")
        assert "alias acme/support@stable" in refused.json()["error"]["message"]
    assert stranger.delete(f"{VERSIONS}/2").status_code == 404
    assert client_of(acme, "adapters:read").delete(f"{VERSIONS}/2").status_code == 403
    assert client.delete(f"{VERSIONS}/2").status_code == 204


def test_the_previous_version_of_an_alias_stays_as_long_as_it_may_be_rolled_back_to(
    acme: Tenant, free: Version, client_of: Clients, settings: Any
) -> None:
    client, adapter = client_of(acme), free.adapter
    move_alias(adapter, "stable", 2, expected=1, actor=SYSTEM)
    for refused in (client.delete(f"{VERSIONS}/1"), client.post(f"{VERSIONS}/1/archive")):
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "rollback_window")
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"rollback_hours": 0})
    assert client.post(f"{VERSIONS}/1/archive").status_code == 200


def test_the_version_that_was_rolled_back_may_go_at_once(acme: Tenant, free: Version) -> None:
    adapter = free.adapter
    move_alias(adapter, "stable", 2, expected=1, actor=SYSTEM)
    rollback_alias(adapter, "stable", expected=2, actor=SYSTEM)
    assert archive_version(free, actor=SYSTEM).state == State.ARCHIVED


def test_whatever_points_to_a_version_by_a_protecting_key_keeps_it(free: Version, monkeypatch: Any) -> None:
    """As a rollout's table does, of which the registry knows nothing: here an alias is over, by its own account."""
    alias = move_alias(free.adapter, "canary", 2, expected=None, actor=SYSTEM)
    with pytest.raises(VersionNeeded, match="canary"):
        delete_version(free, actor=SYSTEM)
    rows = type(type(alias)._default_manager.all())
    monkeypatch.setattr(rows, "active", lambda self: self.none(), raising=False)
    delete_version(free, actor=SYSTEM)


# What is left of one


def test_a_pinned_name_works_until_its_version_is_archived(acme: Tenant, free: Version) -> None:
    names = ("support@v2", f"support@{free.digest}")
    assert {resolve(acme, name).digest for name in names} == {free.digest}
    archive_version(free, actor=SYSTEM)
    for name in names:
        with pytest.raises(ModelNotFound):
            resolve(acme, name)


def test_a_deleted_version_is_gone_but_its_number_is_not_given_again(
    acme: Tenant, free: Version, push: Push, client_of: Clients
) -> None:
    client = client_of(acme)
    client.delete(f"{VERSIONS}/2")
    for answer in (client.get(f"{VERSIONS}/2"), client.delete(f"{VERSIONS}/2"), client.post(f"{VERSIONS}/2/archive")):
        assert answer.status_code == 404
    assert push(acme, "support", 1).number == 3
    assert [row["number"] for row in client.get(VERSIONS).json()["results"]] == [3, 1]
    event = Event.objects.for_tenant(acme).get(action="adapter:version:deleted")
    assert (event.target, event.data) == ("acme/support@v2", {"from": "ready"})


def test_rejected_and_archived_versions_can_be_deleted_and_waiting_ones_not(
    acme: Tenant, free: Version, push: Push, folder: Path, client_of: Clients
) -> None:
    client = client_of(acme)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert push(acme, "support", folder).state == State.REJECTED
    push(acme, "support", validate=False)
    client.post(f"{VERSIONS}/2/archive")
    answers = {number: client.delete(f"{VERSIONS}/{number}").status_code for number in (2, 3, 4)}
    assert answers == {2: 204, 3: 204, 4: 409}


def test_an_adapter_goes_once_its_versions_are_let_go(
    acme: Tenant, free: Version, client_of: Clients, engine: str
) -> None:
    client, adapter = client_of(acme), free.adapter
    client.delete("/api/v1/adapters/support/aliases/stable")
    for version in adapter.versions.all():
        delete_version(version, actor=SYSTEM)
    refused = client.delete("/api/v1/adapters/support")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_in_use")
    assert [release_version(version.pk) for version in adapter.versions.all()] == [True, True]
    delete_adapter(adapter, actor=SYSTEM)
    assert not Version.objects.exists()


# Letting go, on a real engine


@pytest.fixture
def served(engine: str, settings: Any) -> None:
    """The store is the engine's."""
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"store_url": TOLD.store_url})


def asked(question: Callable[[EngineClient], Any]) -> Any:
    async def ask() -> Any:
        client = EngineClient(TOLD.engine_url, TOLD.engine_secret)
        try:
            return await question(client)
        finally:
            await client.close()

    return asyncio.run(ask())


def traces(digest: str) -> set[str]:
    """Where anything of the version is: "engine", and the paths on its disk and in the store."""
    residency: Residency = asked(lambda client: client.residency())
    told = {"engine" for adapter in residency.adapters if adapter.digest == digest}
    hexadecimal = digest.removeprefix("sha256:")
    return told | {path.name for path in (TOLD.home / "cache").rglob("*") if hexadecimal in path.name}


def stored(manifest: Manifest) -> set[str]:
    """What is in the store of the manifest and the weights; the config may be another version's too."""
    weights = {file.sha256 for file in manifest.files if file.name.endswith(".safetensors")}
    names = {manifest.digest.removeprefix("sha256:"), *weights}
    root = Path(TOLD.store_url.removeprefix("file://"))
    return {path.name for path in root.rglob("*") if path.name in names}


def test_device_host_disk_and_store_let_go_of_a_deleted_version(acme: Tenant, served: None, free: Version) -> None:
    manifest = Store(TOLD.store_url).manifest(free.digest)
    assert asked(lambda client: client.preload(free.digest)).state == "resident"
    assert len(traces(free.digest)) >= 2
    assert len(stored(manifest)) == 2
    delete_version(free, actor=SYSTEM)
    tasks.release_version.apply(args=[str(free.pk)], throw=True)
    assert (traces(free.digest), stored(manifest)) == (set(), set())
    assert Version.objects.get(pk=free.pk).released_at is not None
    assert not release_version(free.pk)


def test_an_archived_version_leaves_the_engine_and_stays_in_the_store(
    acme: Tenant, served: None, free: Version
) -> None:
    asked(lambda client: client.preload(free.digest, pin=True))
    archive_version(free, actor=SYSTEM)
    assert release_version(free.pk)
    assert traces(free.digest) == set()
    assert Store(TOLD.store_url).has(free.digest)


def test_what_another_tenant_has_too_is_left_to_it(
    acme: Tenant, globex: Tenant, served: None, free: Version, push: Push
) -> None:
    theirs = push(globex, "support", 1)
    assert theirs.digest == free.digest
    asked(lambda client: client.preload(free.digest))
    delete_version(free, actor=SYSTEM)
    assert release_version(free.pk)
    assert "engine" in traces(free.digest)
    assert Store(TOLD.store_url).has(free.digest)
    theirs.adapter.aliases.all().delete()
    delete_version(theirs, actor=SYSTEM)
    assert release_version(theirs.pk)
    assert traces(free.digest) == set()
    assert not Store(TOLD.store_url).has(free.digest)


def test_a_version_on_which_something_runs_is_let_go_after_it(acme: Tenant, served: None, free: Version) -> None:
    started, enough = threading.Event(), threading.Event()

    async def generate(client: EngineClient) -> None:
        sampling = Sampling(max_tokens=500, temperature=0, ignore_eos=True)
        stream = client.generate(Generation("run", [5, 6], sampling, free.digest))
        async for _ in stream:
            started.set()
            if enough.is_set():
                break
        await stream.aclose()

    running = threading.Thread(target=asked, args=(generate,))
    running.start()
    assert started.wait(60)
    delete_version(free, actor=SYSTEM)
    with pytest.raises(NotReleased, match="draining"):
        release_version(free.pk)
    enough.set()
    running.join(60)
    wait_for(lambda: _released(free), 60, "the release")
    assert traces(free.digest) == set()


def test_while_the_engine_is_down_the_job_is_tried_again(
    acme: Tenant, served: None, free: Version, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = settings.LORAYARD
    asked_again: list[object] = []
    asked(lambda client: client.preload(free.digest))
    delete_version(free, actor=SYSTEM)
    settings.LORAYARD = up.model_copy(update={"engine_url": f"unix:{up.home}/nobody.sock"})
    tasks.release_version.apply(args=[str(free.pk)], throw=True)
    assert traces(free.digest)
    settings.LORAYARD = up
    monkeypatch.setattr(retirement, "_enqueue", asked_again.append)
    monkeypatch.setattr(retirement, "idle", lambda _: True)
    assert release_overdue() == 0
    Version.objects.filter(pk=free.pk).update(changed_at="2020-01-01T00:00:00Z")
    assert (release_overdue(), asked_again) == (1, [free.pk])
    tasks.release_version.apply(args=[str(free.pk)], throw=True)
    assert traces(free.digest) == set()


def _released(version: Version) -> bool:
    try:
        return release_version(version.pk)
    except NotReleased:
        return False
