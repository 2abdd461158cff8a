"""A version that a rollout under way uses, on either side, stays; once it is over, the version may go."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from config import env
from registry.models import Version
from rollouts import services
from rollouts.models import Rollout, State
from tenants.models import Tenant
from tests.registry.conftest import base, home, peft_folders, push, spec

__all__ = ["base", "home", "peft_folders", "push", "spec"]

Clients = Callable[..., APIClient]
TOLD = env.load()
ADAPTER = "/api/v1/adapters/support"


@pytest.fixture
def owner(acme: Tenant, push: Callable[..., Version], client_of: Clients, engine: str, settings: Any) -> APIClient:
    """Of two versions in a store that the engine reads, `stable` being the first."""
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"store_url": TOLD.store_url})
    for which in (0, 1):
        push(acme, "support", which)
    return client_of(acme)


def post(client: APIClient, path: str, **body: Any) -> Any:
    answer = client.post(f"{ADAPTER}/{path}", body, format="json")
    assert answer.status_code < 300, answer.content
    return answer.json()


def begin(client: APIClient) -> Rollout:
    """A rollout to v2 at its first step: the engine has loaded it."""
    made = post(client, "rollouts", version=2, steps=[{"weight": 50, "min_seconds": 3600}])
    for _ in range(2):  # to be loaded, and once it is
        services.tick()
    rollout = Rollout.objects.get(pk=made["id"])
    assert rollout.state == State.PROGRESSING
    return rollout


def refusals(client: APIClient, number: int) -> list[Any]:
    """What archiving and deleting the version are answered."""
    answers = [client.post(f"{ADAPTER}/versions/{number}/archive"), client.delete(f"{ADAPTER}/versions/{number}")]
    assert {answer.status_code for answer in answers} == {409}
    return [answer.json()["error"] for answer in answers]


def needers(client: APIClient, number: int) -> set[tuple[str, str]]:
    first, second = refusals(client, number)
    assert first == second
    assert first["code"] == "version_in_use"
    assert all(needer["name"] in first["message"] for needer in first["needed_by"])
    return {(needer["kind"], needer["id"]) for needer in first["needed_by"]}


def test_either_side_of_a_rollout_stays_and_is_told_for_which(
    owner: APIClient, globex: Tenant, client_of: Clients
) -> None:
    rollout, stranger = begin(owner), client_of(globex)
    its = ("rollout", str(rollout.pk))
    for verb in ("pause", "resume", "promote"):
        assert needers(owner, 1) == {its, ("alias", str(rollout.adapter.aliases.get().pk))}
        assert needers(owner, 2) == {its}
        post(owner, f"rollouts/{rollout.pk}/{verb}")
    assert stranger.delete(f"{ADAPTER}/versions/2").json()["error"]["code"] == "not_found"
    assert {owner.get(f"{ADAPTER}/versions/{number}").json()["state"] for number in (1, 2)} == {"ready"}


def test_the_canary_may_go_once_it_is_rolled_back(owner: APIClient) -> None:
    rollout = begin(owner)
    post(owner, f"rollouts/{rollout.pk}/abort")
    assert needers(owner, 2) == {("rollout", str(rollout.pk))}  # it is on its way back, and not yet there
    services.tick()
    assert owner.delete(f"{ADAPTER}/versions/2").status_code == 204
    shown = owner.get(f"{ADAPTER}/rollouts/{rollout.pk}").json()
    assert (shown["state"], shown["canary"]) == ("rolled_back", 2)


def test_what_was_stable_may_go_once_the_alias_can_not_come_back_any_more(owner: APIClient, settings: Any) -> None:
    rollout = begin(owner)
    post(owner, f"rollouts/{rollout.pk}/promote")
    services.tick()
    rollout.refresh_from_db()
    assert rollout.state == State.SUCCEEDED
    assert [need[0] for need in needers(owner, 2)] == ["alias"]
    assert {refusal["code"] for refusal in refusals(owner, 1)} == {"rollback_window"}
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"rollback_hours": 0})
    assert post(owner, "versions/1/archive")["state"] == "archived"
    assert owner.delete(f"{ADAPTER}/versions/1").status_code == 204
