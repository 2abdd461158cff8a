"""What a request's `model` means, and that what one may not have looks like what does not exist."""

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from django.db import DatabaseError, connection, transaction
from rest_framework.test import APIClient

from audit.models import Event
from audit.services import SYSTEM
from registry.errors import AliasMoved, ModelNotFound, VersionNotReady
from registry.models import Alias, BaseModel, Version
from registry.services import archive_version, move_alias, register_base_model, resolve, visible_models
from tenants.models import Tenant

Clients = Callable[..., APIClient]
Push = Callable[..., Version]
Queries = Callable[..., object]


def test_every_form_of_a_name_means_its_version(acme: Tenant, globex: Tenant, push: Push) -> None:
    first, second = push(acme, "support"), push(acme, "support", 1)
    push(globex, "support", 1)
    move_alias(second.adapter, "champion", 2, expected=None, actor=SYSTEM)
    expected = {
        "acme/support": ("acme/support", first),
        "support": ("acme/support", first),
        "support@stable": ("acme/support", first),
        "acme/support@champion": ("acme/support@champion", second),
        "support@v2": ("acme/support@v2", second),
        f"acme/support@{first.digest}": (f"acme/support@{first.digest}", first),
    }
    for name, (canonical, version) in expected.items():
        target = resolve(acme, name)
        assert (target.model, target.digest, target.version) == (canonical, version.digest, version.number), name
        assert target.adapter == "support"
    target = resolve(acme, "tiny")
    assert (target.model, target.digest, target.adapter, target.version) == ("tiny", "", None, None)


def test_everything_else_is_one_and_the_same_error(acme: Tenant, globex: Tenant, push: Push) -> None:
    mine, theirs = push(acme, "support"), push(globex, "query", 1)
    push(acme, "raw", validate=False)
    retired = push(acme, "support", 1)
    archive_version(retired, actor=SYSTEM)
    names = [
        "globex/query",
        "query",
        "globex/support",
        f"support@{theirs.digest}",
        f"globex/query@{theirs.digest}",
        "no-such",
        "raw",
        "raw@v1",
        "support@v2",
        f"support@{retired.digest}",
        "support@v9",
        "support@v0",
        "support@v01",
        "support@v99999999999999999999",
        "support@",
        "support@no-such",
        "support@@stable",
        "support@stable@v1",
        "support@sha256:00",
        f"support@{mine.digest[:20]}",
        "/support",
        "acme//support",
        "acme/",
        "acme/support/",
        "ACME/support",
        " support",
        "support\n",
        "tiny@v1",
        "acme/tiny",
        "",
        "@",
        "\x00",
        "support\x00",
        "a\ud800",
        "x" * 100_000,
        "' OR 1=1 --",
        "%",
    ]
    for name in names:
        with pytest.raises(ModelNotFound) as caught:
            resolve(acme, name)
        assert caught.value.body["error"]["code"] == "model_not_found"
        assert str(caught.value) == str(ModelNotFound(name))


def test_a_confined_key_reaches_its_adapters_and_the_base_alone(acme: Tenant, globex: Tenant, push: Push) -> None:
    version = push(acme, "support")
    push(acme, "query", 1)
    assert resolve(acme, "support", ["support"]).digest == version.digest
    assert resolve(acme, "tiny", ["support"]).digest == ""
    for name in ("query", "acme/query", "query@v1"):
        with pytest.raises(ModelNotFound):
            resolve(acme, name, ["support"])
    assert [target.model for target in visible_models(acme, ["support"])] == ["tiny", "acme/support"]
    assert [target.model for target in visible_models(globex)] == ["tiny"]


def test_a_name_costs_two_queries_at_most(acme: Tenant, push: Push, django_assert_max_num_queries: Queries) -> None:
    push(acme, "support")
    for name, most in (("support", 1), ("acme/support@v1", 1), ("tiny", 2), ("no-such", 2)):
        with django_assert_max_num_queries(most), suppress(ModelNotFound):  # type: ignore[attr-defined]
            assert resolve(acme, name).base.name == "tiny"


def test_visible_models_are_the_base_and_every_alias(
    acme: Tenant, push: Push, django_assert_max_num_queries: Queries
) -> None:
    push(acme, "zeta")
    version = push(acme, "support")
    push(acme, "raw", validate=False)
    move_alias(version.adapter, "champion", 1, expected=None, actor=SYSTEM)
    with django_assert_max_num_queries(2):  # type: ignore[attr-defined]
        targets = visible_models(acme)
    assert [target.model for target in targets] == ["tiny", "acme/support", "acme/support@champion", "acme/zeta"]
    assert all(resolve(acme, target.model) == target for target in targets)


def test_adapters_of_a_base_model_that_is_no_longer_served_are_not_there(
    acme: Tenant, push: Push, base: BaseModel
) -> None:
    push(acme, "support")
    register_base_model(base.source, "newer")
    for name in ("support", "support@v1", "tiny"):
        with pytest.raises(ModelNotFound):
            resolve(acme, name)
    assert [target.model for target in visible_models(acme)] == ["newer"]


def test_an_alias_moves_by_compare_and_set(acme: Tenant, globex: Tenant, push: Push, client_of: Clients) -> None:
    push(acme, "support")
    push(acme, "support", 1)
    client, stranger = client_of(acme), client_of(globex)
    path = "/api/v1/adapters/support/aliases/stable"
    moved = client.put(path, {"version": 2, "expected": 1}, format="json")
    assert (moved.status_code, moved.json()["version"]) == (200, 2)
    lost = client.put(path, {"version": 1, "expected": 1}, format="json")
    assert lost.status_code == 409
    assert lost.json()["error"]["code"] == "alias_moved"
    assert "v2" in lost.json()["error"]["message"]
    assert client.put(path, {"version": 1, "expected": None}, format="json").status_code == 409
    assert stranger.put(path, {"version": 1, "expected": 2}, format="json").status_code == 404
    assert client.get(path).json()["version"] == 2
    history = Event.objects.for_tenant(acme).filter(action="adapter:alias:moved")
    assert [event.data for event in history] == [{"from": 1, "to": 2}]


def test_aliases_are_made_listed_and_deleted(acme: Tenant, globex: Tenant, push: Push, client_of: Clients) -> None:
    push(acme, "support")
    client, stranger = client_of(acme), client_of(globex)
    path = "/api/v1/adapters/support/aliases"
    assert client.put(f"{path}/champion", {"version": 1, "expected": None}, format="json").status_code == 200
    assert [row["name"] for row in client.get(path).json()["results"]] == ["champion", "stable"]
    assert stranger.delete(f"{path}/champion").status_code == 404
    assert client.delete(f"{path}/champion").status_code == 204
    assert client.delete(f"{path}/champion").status_code == 404
    assert resolve(acme, "support@v1").version == 1


@pytest.mark.parametrize(
    ("alias", "body", "status", "param"),
    [
        ("stable", {"version": 1}, 400, "expected"),
        ("stable", {"expected": 1}, 400, "version"),
        ("stable", {"version": "one", "expected": 1}, 400, "version"),
        ("stable", {"version": -1, "expected": 1}, 400, "version"),
        ("stable", {"version": 10**20, "expected": 1}, 400, "version"),
        ("stable", {"version": 1, "expected": 1, "force": True}, 400, "force"),
        ("stable", {"version": 7, "expected": 1}, 409, "version"),
        ("v1", {"version": 1, "expected": None}, 400, "name"),
        ("Champion", {"version": 1, "expected": None}, 400, "name"),
        ("a%00b", {"version": 1, "expected": None}, 404, None),  # no path has such a letter
    ],
)
def test_a_wrong_move_is_named_and_changes_nothing(
    acme: Tenant, push: Push, client_of: Clients, alias: str, body: dict[str, object], status: int, param: str
) -> None:
    push(acme, "support")
    answer = client_of(acme).put(f"/api/v1/adapters/support/aliases/{alias}", body, format="json")
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert [(alias.name, alias.version.number) for alias in Alias.objects.all()] == [("stable", 1)]


def test_an_alias_never_points_to_what_is_not_ready(acme: Tenant, push: Push) -> None:
    adapter = push(acme, "support").adapter
    push(acme, "support", 1, validate=False)
    other = push(acme, "query").adapter
    with pytest.raises(VersionNotReady):
        move_alias(adapter, "stable", 2, expected=1, actor=SYSTEM)
    with pytest.raises(DatabaseError), transaction.atomic():
        Alias.objects.create(adapter=other, name="v3", version=other.versions.get())


@pytest.mark.django_db(transaction=True)
def test_of_many_who_move_an_alias_at_once_one_wins(acme: Tenant, push: Push) -> None:
    adapter = push(acme, "support").adapter
    push(acme, "support", 1)
    outcomes: list[str] = []

    def work() -> None:
        try:
            move_alias(adapter, "stable", 2, expected=1, actor=SYSTEM)
            outcomes.append("moved")
        except AliasMoved:
            outcomes.append("lost")
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(outcomes) == ["lost"] * 7 + ["moved"]
