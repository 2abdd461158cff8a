"""Rollouts over the management API, with a stranger present."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from registry.models import Adapter
from rollouts import services
from rollouts.models import Rollout, State
from tenants.models import Tenant

Clients = Callable[..., APIClient]
URL = "/api/v1/adapters/support/rollouts"
STEPS = [{"weight": 5, "min_seconds": 0, "min_samples": 10, "gate": True}, {"weight": 12.5}]


def post(client: APIClient, path: str = "", **body: Any) -> Any:
    return client.post(f"{URL}{path}", body, format="json")


@pytest.fixture
def owner(acme: Tenant, adapter: Adapter, client_of: Clients) -> APIClient:
    return client_of(acme)


def test_a_rollout_is_made_shown_and_aborted(owner: APIClient) -> None:
    made = post(owner, version=2, steps=STEPS, unit="user")
    assert made.status_code == 201, made.content
    shown = owner.get(f"{URL}/{made.json()['id']}").json()
    assert (shown["stable"], shown["canary"], shown["state"], shown["unit"]) == (1, 2, "validating", "user")
    assert [(step["weight"], step["gate"]) for step in shown["steps"]] == [(5.0, True), (12.5, False)]
    assert (shown["arms"], shown["verdict"], shown["weight"]) == ({}, None, 0)
    aborted = post(owner, f"/{shown['id']}/abort", reason="second thoughts").json()
    assert (aborted["state"], aborted["cause"], aborted["reasons"]) == ("rolling_back", "person", ["second thoughts"])
    assert [row["id"] for row in owner.get(URL).json()["results"]] == [shown["id"]]


def test_every_verb_has_its_call(owner: APIClient, begin: Callable[..., Rollout]) -> None:
    rollout = begin()
    verbs = {"pause": "paused", "resume": "progressing", "promote": "promoting", "abort": "rolling_back"}
    for verb, state in verbs.items():
        answer = post(owner, f"/{rollout.pk}/{verb}")
        assert (answer.status_code, answer.json()["state"]) == (200, state), verb
    refused = post(owner, f"/{rollout.pk}/approve")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "rollout_state")


def test_a_draft_is_started_by_a_call(owner: APIClient) -> None:
    draft = post(owner, version=2, start=False).json()
    assert (draft["state"], len(draft["steps"])) == ("draft", 4)
    assert post(owner, f"/{draft['id']}/start").json()["state"] == "validating"
    busy = post(owner, version=2)
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "rollout_active")


BAD: list[dict[str, Any]] = [
    {},
    {"version": 0},
    {"version": 2, "steps": []},
    {"version": 2, "steps": [{"weight": 0}]},
    {"version": 2, "steps": [{"weight": 101}]},
    {"version": 2, "steps": [{"weight": 5, "speed": 1}]},
    {"version": 2, "unit": "moon"},
    {"version": 2, "salt": "mine"},
    {"version": 2, "schema": {"type": 3}},
]


@pytest.mark.parametrize("body", BAD)
def test_what_makes_no_sense_is_400_and_makes_nothing(owner: APIClient, body: dict[str, Any]) -> None:
    assert post(owner, **body).status_code == 400
    assert not Rollout.objects.exists()


def test_a_stranger_gets_the_same_404_as_for_nothing(
    owner: APIClient, globex: Tenant, client_of: Clients, begin: Callable[..., Rollout]
) -> None:
    rollout, stranger = begin(), client_of(globex)
    paths = ["", f"/{rollout.pk}", f"/{rollout.pk}/verdicts"]
    assert {stranger.get(URL + path).status_code for path in paths} == {404}
    verbs = ["start", "pause", "resume", "approve", "promote", "abort"]
    answers = [post(stranger, f"/{rollout.pk}/{verb}") for verb in verbs] + [post(stranger, version=2)]
    assert {(answer.status_code, str(answer.json())) for answer in answers} == {
        (404, str(post(stranger, "/00000000-0000-0000-0000-000000000000/abort").json()))
    }
    rollout.refresh_from_db()
    assert rollout.state == State.PROGRESSING


def test_reading_and_writing_are_scopes_of_their_own(
    acme: Tenant, adapter: Adapter, client_of: Clients, begin: Callable[..., Rollout]
) -> None:
    rollout = begin()
    reader = client_of(acme, "rollouts:read")
    assert reader.get(f"{URL}/{rollout.pk}").status_code == 200
    assert post(reader, f"/{rollout.pk}/abort").status_code == 403
    assert client_of(acme, "adapters:write").get(URL).status_code == 403
    confined = client_of(acme, "rollouts:read", adapters=("other",))
    assert confined.get(URL).status_code == 404


def test_thumbs_are_kept_per_tenant_and_the_last_word_holds(
    acme: Tenant, globex: Tenant, begin: Callable[..., Rollout]
) -> None:
    response = "chatcmpl-" + "0" * 32
    services.give_feedback(acme, response, up=True)
    assert not acme.feedback.exists()
    begin()
    for up in (True, True, False):
        services.give_feedback(acme, response, up=up)
    services.give_feedback(globex, response, up=True)
    assert [thumb.up for thumb in acme.feedback.all()] == [False]
    assert not globex.feedback.exists()
