"""Budgets over the management API."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from apikeys.models import ApiKey
from audit.models import Event
from audit.services import SYSTEM
from metering import budgets, ledger
from metering.models import Budget, Call, Outcome
from metering.services import create_budget
from tenants.models import Tenant

URL = "/api/v1/budgets"
Clients = Callable[..., Any]


@pytest.fixture
def owner(acme: Tenant, client_of: Clients) -> Any:
    return client_of(acme, "budgets:read", "budgets:write")


def test_a_budget_is_made_shown_changed_and_deleted_and_each_is_on_record(owner: Any, acme: Tenant) -> None:
    made = owner.post(URL, {"period": "day", "tokens": 100}, format="json")
    assert made.status_code == 201, made.content
    body = made.json()
    assert (body["tokens"], body["used"], body["reserved"], body["key"], body["imposed"]) == (100, 0, 0, None, False)
    path = f"{URL}/{body['id']}"
    assert owner.patch(path, {"tokens": 150}, format="json").json()["tokens"] == 150
    owner.patch(path, {"tokens": 150}, format="json")
    assert [row["tokens"] for row in owner.get(URL).json()["results"]] == [150]
    assert owner.delete(path).status_code == 204
    assert owner.get(path).status_code == 404
    events = Event.objects.for_tenant(acme).filter(action__startswith="budget:").order_by("number")
    assert [(event.action, event.data) for event in events] == [
        ("budget:created", {"period": "day", "tokens": 100, "key": None, "imposed": False}),
        ("budget:changed", {"before": {"tokens": 100}, "after": {"tokens": 150}}),
        ("budget:deleted", {"period": "day", "tokens": 150, "key": None, "imposed": False}),
    ]


def test_it_shows_what_is_used_and_what_is_taken(owner: Any, acme: Tenant, call_of: Callable[..., Call]) -> None:
    create_budget(acme, period="month", tokens=1_000, actor=SYSTEM)
    for used in (30, None):
        call = call_of(acme, prompt=0, completion=0, outcome=Outcome.OPEN)
        budgets.reserve(call, budgets.rooms(acme.pk, call.key), 200)
        if used is not None:
            call.prompt, call.outcome = used, Outcome.FINISHED
            ledger.write([call])
    (row,) = owner.get(URL).json()["results"]
    assert (row["used"], row["reserved"]) == (30, 200)


def test_one_budget_for_each_key_and_period(owner: Any, acme: Tenant) -> None:
    key = str(ApiKey.objects.for_tenant(acme).get().pk)
    wanted: list[dict[str, Any]] = [
        {"period": period, "tokens": 5, **({"key": key} if own else {})}
        for period in ("day", "month")
        for own in (0, 1)
    ]
    assert {owner.post(URL, body, format="json").status_code for body in wanted} == {201}
    for body in wanted:
        again = owner.post(URL, body, format="json")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "budget_exists")


DAY: dict[str, Any] = {"period": "day", "tokens": 1}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"period": "day"},
        {**DAY, "period": "year"},
        *({**DAY, "tokens": tokens} for tokens in (0, -5, 10**15 + 1, 2**63, "1.5", None)),
        {**DAY, "imposed": True},
        *({**DAY, "key": key} for key in ("x", str(uuid4()))),
    ],
)
def test_what_makes_no_sense_is_refused(owner: Any, body: dict[str, Any]) -> None:
    assert owner.post(URL, body, format="json").status_code == 400
    assert not Budget.objects.exists()


def test_a_stranger_gets_404_and_cannot_limit_another_s_key(acme: Tenant, globex: Tenant, client_of: Clients) -> None:
    client_of(acme)
    key = ApiKey.objects.for_tenant(acme).get()
    budget = create_budget(acme, period="day", tokens=5, actor=SYSTEM)
    stranger = client_of(globex)
    path = f"{URL}/{budget.pk}"
    assert stranger.get(URL).json()["results"] == []
    assert {stranger.get(path).status_code, stranger.delete(path).status_code} == {404}
    assert stranger.patch(path, {"tokens": 1}, format="json").status_code == 404
    planted = stranger.post(URL, {"period": "day", "tokens": 1, "key": str(key.pk)}, format="json")
    unknown = stranger.post(URL, {"period": "day", "tokens": 1, "key": str(uuid4())}, format="json")
    assert planted.status_code == unknown.status_code == 400
    assert planted.json() == unknown.json()


def test_what_an_operator_imposed_a_tenant_sees_and_leaves(owner: Any, acme: Tenant, client_of: Clients) -> None:
    operator = client_of(None)
    made = operator.post(f"{URL}?tenant=acme", {"period": "day", "tokens": 5}, format="json").json()
    assert made["imposed"]
    path = f"{URL}/{made['id']}"
    for refused in (owner.patch(path, {"tokens": 9}, format="json"), owner.delete(path)):
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "imposed_budget")
    assert owner.post(URL, {"period": "day", "tokens": 3}, format="json").status_code == 201  # a tighter one of its own
    assert operator.patch(f"{path}?tenant=acme", {"tokens": 9}, format="json").status_code == 200
    assert operator.delete(f"{path}?tenant=acme").status_code == 204
    assert len(owner.get(URL).json()["results"]) == 1
