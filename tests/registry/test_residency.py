"""Versions are brought to a real engine, kept there and sent away by call; a tenant's pins are counted."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import override_settings
from rest_framework.test import APIClient

from audit.models import Event
from audit.services import SYSTEM
from config import env
from inference.client import EngineClient
from registry import engine as engine_of_versions
from registry.models import Version
from registry.services import archive_version, hold_pins
from tenants.models import Tenant
from tenants.services import change_tenant

Clients = Callable[..., APIClient]
Push = Callable[..., Version]
TOLD = env.load()
TWO = "/api/v1/adapters/support/versions/2"


def asked(question: Callable[[EngineClient], Any]) -> Any:
    async def ask() -> Any:
        client = EngineClient(TOLD.engine_url, TOLD.engine_secret)
        try:
            return await question(client)
        finally:
            await client.close()

    return asyncio.run(ask())


def _empty(versions: list[Version]) -> None:
    cache.clear()

    async def evict(client: EngineClient) -> None:
        for version in versions:
            await client.evict(version.digest)

    asked(evict)


@pytest.fixture
def versions(engine: str, settings: Any, acme: Tenant, push: Push) -> Iterator[list[Version]]:
    """Two versions of one adapter, in the engine's store and on no tier of it."""
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"store_url": TOLD.store_url})
    made = [push(acme, "support", which) for which in (0, 1)]
    _empty(made)
    yield made
    _empty(made)


def test_a_version_is_preloaded_shown_and_evicted(
    acme: Tenant, globex: Tenant, versions: list[Version], client_of: Clients
) -> None:
    client, stranger, reader = client_of(acme), client_of(globex), client_of(acme, "adapters:read")
    assert client.get(f"{TWO}/residency").json()["state"] == "absent"
    for refused, status in ((stranger, 404), (reader, 403)):
        assert refused.put(f"{TWO}/residency").status_code == status
        assert refused.put(f"{TWO}/pin").status_code == status
    assert client.put(f"{TWO}/residency").json()["state"] == "resident"
    shown = reader.get(f"{TWO}/residency").json()
    assert (shown["state"], shown["tier"], shown["pinned"]) == ("resident", "device", False)
    assert shown["bytes"] > 0
    assert stranger.get(f"{TWO}/residency").status_code == 404
    assert client.delete(f"{TWO}/residency").json()["state"] == "absent"
    assert client.get(f"{TWO}/residency").json()["state"] == "absent"
    actions = Event.objects.for_tenant(acme).filter(target="acme/support@v2").values_list("action", flat=True)
    assert {"adapter:version:preloaded", "adapter:version:evicted"} <= set(actions)


def test_without_the_cache_a_version_comes_and_goes_and_nobody_is_told_where_it_is(
    versions: list[Version], client_of: Clients, acme: Tenant, settings: Any
) -> None:
    client = client_of(acme)
    with override_settings(
        CACHES={"default": {**settings.CACHES["default"], "LOCATION": "unix:///nowhere/redis.sock"}}
    ):
        for ask in (client.put, client.get, client.delete):
            assert ask(f"{TWO}/residency").status_code == 200
        assert client.put(f"{TWO}/pin").json()["state"] == "resident"
        assert client.delete(f"{TWO}/pin").status_code == 200
    assert versions[1].digest in {one.digest for one in asked(lambda engine: engine.residency()).adapters}


def test_pins_are_counted_per_tenant_and_told_to_an_engine_that_forgot_them(
    acme: Tenant, versions: list[Version], client_of: Clients
) -> None:
    client = client_of(acme)
    change_tenant(acme, actor=SYSTEM, quota_pins=1)
    pinned = client.put(f"{TWO}/pin").json()
    assert (pinned["state"], pinned["pinned"], pinned["held"]) == ("resident", True, True)
    assert client.put(f"{TWO}/pin").status_code == 200
    spent = client.put("/api/v1/adapters/support/versions/1/pin")
    assert (spent.status_code, spent.json()["error"]["code"]) == (403, "quota_exceeded")
    assert hold_pins() == 0
    asked(lambda engine: engine.evict(versions[1].digest))  # as a restart would
    assert client.get(f"{TWO}/residency").json()["held"] is False
    assert hold_pins() == 1
    assert client.get(f"{TWO}/residency").json()["held"] is True
    unpinned = client.delete(f"{TWO}/pin").json()
    assert (unpinned["pinned"], unpinned["held"]) == (False, False)
    assert client.get(TWO).json()["pinned_at"] is None
    actions = Event.objects.for_tenant(acme).values_list("action", flat=True)
    assert [list(actions).count(f"adapter:version:{verb}") for verb in ("pinned", "unpinned")] == [1, 1]


def test_half_of_the_slots_stay_for_everybody(
    acme: Tenant, versions: list[Version], client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.services.residency.SHARE", 1000)
    refused = client_of(acme).put(f"{TWO}/pin")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "pins_spent")
    assert not Version.objects.exclude(pinned_at=None).exists()


def test_archiving_ends_a_pin(acme: Tenant, versions: list[Version], client_of: Clients) -> None:
    client = client_of(acme)
    client.put(f"{TWO}/pin")
    archive_version(versions[1], actor=SYSTEM)
    assert client.get(TWO).json()["pinned_at"] is None
    for verb in ("residency", "pin"):
        refused = client.put(f"{TWO}/{verb}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_not_ready")


@pytest.mark.parametrize("shared", [False, True])
def test_equal_files_of_another_tenant_are_not_evicted_and_change_nothing_of_what_is_told(
    acme: Tenant, globex: Tenant, versions: list[Version], push: Push, client_of: Clients, shared: bool
) -> None:
    """The same calls of acme's, with and without a stranger who has the files and pins them."""
    if shared:
        assert push(globex, "query", 1).digest == versions[1].digest
        client_of(globex).put("/api/v1/adapters/query/versions/1/pin")
    ours, place = client_of(acme), f"{TWO}/residency"
    calls: list[tuple[Callable[..., Any], str]] = [
        (ours.get, place), (ours.put, place), (ours.get, place), (ours.delete, place), (ours.get, place),
        (ours.put, f"{TWO}/pin"), (ours.get, place), (ours.delete, f"{TWO}/pin"), (ours.get, place),
    ]  # fmt: skip
    told = [call(path).json() for call, path in calls]
    assert [(one["state"], one["pinned"], one["held"]) for one in told] == [
        ("absent", False, False), ("resident", False, False), ("resident", False, False), ("absent", False, False),
        ("absent", False, False), ("resident", True, True), ("resident", True, True), ("resident", False, False),
        ("resident", False, False),
    ]  # fmt: skip
    assert {frozenset(one) for one in told} == {frozenset({"state", "tier", "bytes", "pinned", "held"})}
    states = {one.digest: one for one in asked(lambda client: client.residency()).adapters}
    assert (versions[1].digest in states and states[versions[1].digest].pinned) == shared


def test_while_the_engine_is_down_nothing_is_pinned(
    acme: Tenant, versions: list[Version], client_of: Clients, settings: Any
) -> None:
    client = client_of(acme)
    url = f"unix:{settings.LORAYARD.home}/nobody.sock"
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"engine_url": url})
    for answer in (client.get(f"{TWO}/residency"), client.put(f"{TWO}/residency"), client.put(f"{TWO}/pin")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert client.get(TWO).json()["pinned_at"] is None
    assert hold_pins() == 0


@pytest.mark.django_db(transaction=True)
def test_while_the_engine_is_asked_no_connection_to_the_database_is_held(
    acme: Tenant, versions: list[Version], client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, ask, held = client_of(acme), engine_of_versions.ask, []

    def watched(question: Any) -> Any:
        held.append(connection.connection is not None)
        return ask(question)

    monkeypatch.setattr("registry.services.residency.engine.ask", watched)
    for call in (client.put, client.get, client.delete):
        assert call(f"{TWO}/residency").status_code == 200
    assert client.put(f"{TWO}/pin").json()["held"] is True
    assert client.delete(f"{TWO}/pin").status_code == 200
    assert held
    assert not any(held)
