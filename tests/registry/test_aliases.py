"""Aliases move by one call, keep their history, and go back by one call."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from rest_framework.test import APIClient

from audit.models import Event
from audit.services import SYSTEM
from registry.errors import AliasMoved
from registry.models import Adapter, AliasMove, Version
from registry.services import archive_version, delete_alias, move_alias, resolve, rollback_alias
from tenants.models import Tenant

Clients = Callable[..., APIClient]
Push = Callable[..., Version]
STABLE = "/api/v1/adapters/support/aliases/stable"


@pytest.fixture
def three(acme: Tenant, push: Push) -> Adapter:
    """An adapter of three versions, `stable` having been moved from the first to the third by way of the second."""
    adapter = [push(acme, "support", which) for which in (0, 1, 0)][-1].adapter
    for number in (2, 3):
        move_alias(adapter, "stable", number, expected=number - 1, actor=SYSTEM)
    return adapter


def history(adapter: Adapter, alias: str = "stable") -> list[tuple[str, int | None, int | None]]:
    moves = adapter.alias_moves.filter(alias=alias).order_by("id").select_related("from_version", "to_version")
    return [(move.kind, _number(move.from_version), _number(move.to_version)) for move in moves]


def _number(version: Version | None) -> int | None:
    return version.number if version else None


def test_a_rollback_goes_back_step_by_step_and_never_forward(acme: Tenant, three: Adapter) -> None:
    for expected, there in ((3, 2), (2, 1)):
        assert rollback_alias(three, "stable", expected=expected, actor=SYSTEM).version.number == there
        assert resolve(acme, "support").version == there
    assert history(three) == [
        ("created", None, 1),
        ("moved", 1, 2),
        ("moved", 2, 3),
        ("rolled_back", 3, 2),
        ("rolled_back", 2, 1),
    ]
    actions = Event.objects.for_tenant(acme).filter(target="acme/support@stable").order_by("id")
    assert [event.action.rpartition(":")[2] for event in actions] == [
        *("created", "moved", "moved", "rolled-back", "rolled-back")
    ]


def test_the_api_moves_rolls_back_and_shows_the_history(
    acme: Tenant, globex: Tenant, three: Adapter, client_of: Clients
) -> None:
    client, stranger = client_of(acme), client_of(globex)
    shown = client.get(STABLE).json()
    assert (shown["version"], shown["previous"]) == (3, 2)
    for body in ({}, {"expected": 0}, {"expected": None}, {"expected": 3, "version": 1}):
        assert client.post(f"{STABLE}/rollback", body, format="json").status_code == 400
    lost = client.post(f"{STABLE}/rollback", {"expected": 2}, format="json")
    assert (lost.status_code, lost.json()["error"]["code"]) == (409, "alias_moved")
    assert stranger.post(f"{STABLE}/rollback", {"expected": 3}, format="json").status_code == 404
    assert stranger.get(f"{STABLE}/moves").status_code == 404
    back = client.post(f"{STABLE}/rollback", {"expected": 3, "reason": "wrong tone"}, format="json").json()
    assert (back["version"], back["previous"]) == (2, 1)
    again = client.post(f"{STABLE}/rollback", {"expected": 3}, format="json")
    assert again.status_code == 409
    [newest, *older] = client.get(f"{STABLE}/moves").json()["results"]
    assert (newest["kind"], newest["from_version"], newest["to_version"]) == ("rolled_back", 3, 2)
    assert newest["reason"] == "wrong tone"
    assert newest["actor"].startswith("key:")
    assert [move["kind"] for move in older] == ["moved", "moved", "created"]


def test_without_a_way_back_a_rollback_is_refused(acme: Tenant, push: Push, client_of: Clients) -> None:
    push(acme, "support")
    client = client_of(acme)
    assert client.get(STABLE).json()["previous"] is None
    refused = client.post(f"{STABLE}/rollback", {"expected": 1}, format="json")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "nothing_to_roll_back")
    assert client.post("/api/v1/adapters/support/aliases/none/rollback", {"expected": 1}).status_code == 404
    assert client.get("/api/v1/adapters/support/aliases/none/moves").status_code == 404


def test_an_archived_version_is_not_rolled_back_to(
    acme: Tenant, three: Adapter, client_of: Clients, settings: Any
) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"rollback_hours": 0})
    archive_version(three.versions.get(number=2), actor=SYSTEM)
    refused = client_of(acme).post(f"{STABLE}/rollback", {"expected": 3}, format="json")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_not_ready")


def test_the_history_outlives_the_alias_and_is_never_changed(acme: Tenant, three: Adapter, client_of: Clients) -> None:
    delete_alias(three.aliases.get(), actor=SYSTEM)
    assert history(three)[-1] == ("deleted", 3, None)
    assert len(client_of(acme).get(f"{STABLE}/moves").json()["results"]) == 4
    with pytest.raises(DatabaseError), transaction.atomic():
        AliasMove.objects.update(reason="something else")


@pytest.mark.django_db(transaction=True)
def test_of_two_who_move_at_once_one_learns_of_it(acme: Tenant, three: Adapter) -> None:
    barrier, outcomes = threading.Barrier(2), []

    def work(verb: Callable[[], object]) -> None:
        barrier.wait()
        try:
            verb()
            outcomes.append("moved")
        except AliasMoved:
            outcomes.append("lost")
        finally:
            connection.close()

    verbs = [
        lambda: rollback_alias(three, "stable", expected=3, actor=SYSTEM),
        lambda: move_alias(three, "stable", 1, expected=3, actor=SYSTEM),
    ]
    threads = [threading.Thread(target=work, args=(verb,)) for verb in verbs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(outcomes) == ["lost", "moved"]
    assert len(history(three)) == 4
