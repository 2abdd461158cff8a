"""The first page: its numbers, and the engine's panel with a real engine, a dead one, and one that hangs."""

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from config.env import Env
from console import dashboard
from console.access import Access
from console.dashboard import resident
from inference.client import AdapterState, Residency
from registry.services import note_use
from registry.services.uses import forget_use
from tenants.models import Role, Tenant

from .conftest import Yard


def counts(client: Client) -> dict[str, int]:
    return {count.title: count.value for count in client.get("/").context["counts"]}


def test_it_counts_everybody_s_for_an_operator_and_a_member_s_own_for_a_member(
    desk: Client, member_of: Callable[..., Client], ours: Yard, strangers: Yard
) -> None:
    everything = {"Tenants": 2, "Adapters ready": 2, "Being validated": 2, "Rejected": 2, "Keys live": 2}
    assert counts(desk) == everything
    assert counts(member_of(ours.tenant)) == {title: 1 for title in everything}


def test_it_asks_the_database_a_bounded_number_of_times(
    desk: Client, ours: Yard, strangers: Yard, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(12):
        desk.get("/")


def test_an_engine_that_is_down_is_said_so(desk: Client) -> None:
    page = desk.get("/engine/")
    assert page.status_code == 200
    assert "does not answer" in page.content.decode()


def test_an_engine_that_hangs_costs_no_more_than_the_page_s_patience(
    desk: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the client's own of five seconds; a busy machine gets more than one try."""
    monkeypatch.setattr(dashboard, "PATIENCE", 0.2)

    def waited() -> float:
        started = time.monotonic()
        assert "does not answer" in desk.get("/engine/").content.decode()
        return time.monotonic() - started

    with socket.create_server(("127.0.0.1", 0)) as silent:
        env: Env = settings.LORAYARD
        settings.LORAYARD = env.model_copy(update={"engine_url": f"127.0.0.1:{silent.getsockname()[1]}"})
        assert any(waited() < 4 for _ in range(5))


def test_a_real_engine_s_state_is_shown_by_the_names_that_one_may_know(
    desk: Client,
    member_of: Callable[..., Client],
    ours: Yard,
    engine: str,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dashboard, "PATIENCE", 60)
    env: Env = settings.LORAYARD
    settings.LORAYARD = env.model_copy(update={"engine_url": engine})
    state = desk.get("/engine/").content.decode()
    assert "Up, with" in state
    assert "Steps with several adapters" in state
    theirs = member_of(ours.tenant).get("/engine/").content.decode()
    assert "Up, with" in theirs
    assert "Tokens generated" not in theirs


def test_a_resident_adapter_is_named_to_its_own_and_a_number_to_nobody_else(
    ours: Yard, strangers: Yard, acme: Tenant
) -> None:
    """Both tenants uploaded the same files, so one digest on the device has a name for each."""
    digest = ours.ready.digest
    residency = Residency((AdapterState(digest, "resident", 0, 1), AdapterState("sha256:0", "loading", 0, 1)), 2)
    everything = [row["version"] for row in resident(Access(operator=True), residency)]
    assert everything == [ours.ready, strangers.ready, None]
    viewer = Access(roles={acme.pk: Role.VIEWER})
    forget_use(acme.pk, digest)
    assert resident(viewer, residency) == [], "it may be the strangers who had it brought there"
    note_use(acme.pk, digest)
    assert [row["version"] for row in resident(viewer, residency)] == [ours.ready]
