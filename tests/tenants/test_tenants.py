"""Tenants are an operator's to make; what a request gets wrong is named."""

import json
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import IntegrityError
from rest_framework.test import APIClient

from audit.models import Action, Event
from audit.services import SYSTEM
from audit.verification import verify
from tenants.models import Member, Role, Tenant
from tenants.services import add_member, change_tenant, create_tenant

Clients = Callable[..., APIClient]


def test_an_operator_makes_reads_and_changes_a_tenant(client_of: Clients) -> None:
    operator = client_of(None)
    made = operator.post("/api/v1/tenants", {"slug": "acme", "name": "Acme"}, format="json")
    assert made.status_code == 201
    assert made.json()["slug"] == "acme"
    changed = operator.patch("/api/v1/tenants/acme", {"weight": 2.5, "active": False}, format="json")
    assert changed.json()["weight"] == 2.5
    assert operator.get("/api/v1/tenants/acme").json() == changed.json()
    assert [row["slug"] for row in operator.get("/api/v1/tenants").json()["results"]] == ["acme"]
    events = Event.objects.for_tenant(Tenant.objects.get()).order_by("number")
    assert [event.action for event in events] == [Action.TENANT_CREATED, Action.TENANT_CHANGED]
    assert events[1].data == {"before": {"weight": "1.0", "active": True}, "after": {"weight": "2.5", "active": False}}
    assert verify() == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "Acme"}, "slug"),
        ({"slug": "Acme Inc", "name": "Acme"}, "slug"),
        ({"slug": "-acme", "name": "Acme"}, "slug"),
        ({"slug": "a" * 64, "name": "Acme"}, "slug"),
        ({"slug": "acme\n", "name": ""}, "name"),
        ({"slug": "acme", "name": "x\u0000"}, "name"),
        ({"slug": "acme", "name": "\ud800"}, "name"),
        ({"slug": "acme", "name": "Acme", "weight": 0}, "weight"),
        ({"slug": "acme", "name": "Acme", "weight": 1e300}, "weight"),
        ({"slug": "acme", "name": "Acme", "weight": "NaN"}, "weight"),
        ({"slug": "acme", "name": "Acme", "active": True}, "active"),
        ({"slug": "acme", "name": "Acme", "id": 7}, "id"),
        ({"slug": "acme", "name": "Acme", "owner": "me"}, "owner"),
    ],
)
def test_a_wrong_field_is_named(client_of: Clients, body: dict[str, object], param: str) -> None:
    answer = client_of(None).post("/api/v1/tenants", json.dumps(body), content_type="application/json")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("body", ["{", "[]", '"acme"', "null", "7", ""])
def test_a_body_that_is_no_object_is_a_400(client_of: Clients, body: str) -> None:
    answer = client_of(None).post("/api/v1/tenants", body, content_type="application/json")
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_slug_is_taken_once(client_of: Clients, acme: Tenant) -> None:
    answer = client_of(None).post("/api/v1/tenants", {"slug": "acme", "name": "Other"}, format="json")
    assert answer.status_code == 409
    assert answer.json()["error"] == {
        "message": "There is a tenant 'acme' already.",
        "type": "invalid_request_error",
        "param": "slug",
        "code": "slug_taken",
    }


def test_a_tenants_key_can_do_nothing_here_not_even_to_its_own(
    client_of: Clients, acme: Tenant, globex: Tenant
) -> None:
    client = client_of(globex)
    answers = [
        client.get("/api/v1/tenants"),
        client.post("/api/v1/tenants", {"slug": "new", "name": "New"}, format="json"),
        client.get("/api/v1/tenants/acme"),
        client.get("/api/v1/tenants/globex"),
        client.patch("/api/v1/tenants/acme", {"active": False}, format="json"),
        client.get("/api/v1/tenants/no-such"),
    ]
    assert {answer.status_code for answer in answers} == {403}
    assert len({answer.content for answer in answers}) == 1


def test_operators_use_the_consoles_session_and_others_do_not(acme: Tenant) -> None:
    operator = User.objects.create_superuser("op", password="pw")
    member = User.objects.create_user("member", password="pw", is_staff=True)
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(member)
    assert client.get("/api/v1/tenants").status_code == 403
    client.force_login(operator)
    assert client.get("/api/v1/tenants").status_code == 200
    forged = client.post("/api/v1/tenants", {"slug": "x", "name": "X"}, format="json")
    assert forged.status_code == 403
    assert "CSRF" in forged.json()["error"]["message"]


def test_what_stays_the_same_is_not_recorded(acme: Tenant) -> None:
    change_tenant(acme, actor=SYSTEM, name="Acme", active=True)
    assert Event.objects.for_tenant(acme).count() == 1


def test_the_database_refuses_a_slug_that_the_service_would(db: None) -> None:
    with pytest.raises(IntegrityError):
        Tenant.objects.create(slug="No Slug", name="x")


def test_a_member_has_one_role(acme: Tenant, globex: Tenant) -> None:
    user = User.objects.create_user("ann")
    add_member(acme, user, Role.VIEWER, actor=SYSTEM)
    add_member(acme, user, Role.OWNER, actor=SYSTEM)
    assert [(member.tenant, member.role) for member in Member.objects.all()] == [(acme, "owner")]


def test_pages_follow_one_another_and_a_forged_cursor_is_a_404(client_of: Clients) -> None:
    for number in range(5):
        create_tenant(f"t{number}", "T", actor=SYSTEM)
    operator = client_of(None)
    page = operator.get("/api/v1/tenants?limit=2").json()
    seen = [row["slug"] for row in page["results"]]
    while page["next"]:
        page = operator.get(page["next"]).json()
        seen += [row["slug"] for row in page["results"]]
    assert seen == ["t0", "t1", "t2", "t3", "t4"]
    for cursor in ("x", "cD0AYQ==", "bz05OTk5OTk5OTk5", "cD0wMA=="):
        assert operator.get(f"/api/v1/tenants?cursor={cursor}").status_code in (200, 404)


@pytest.mark.parametrize("limit", ["abc", "", "0", "-1", "1.5", "201", "1e2", "9" * 5000, "\u0661"])
def test_a_limit_that_is_none_is_refused_by_name(client_of: Clients, limit: str) -> None:
    answer = client_of(None).get("/api/v1/tenants", {"limit": limit})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "limit")
    assert "1 to 200" in error["message"]


def test_the_command_makes_one_and_says_why_not(db: None, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("create_tenant", "acme", "--name", "Acme Inc.")
    assert capsys.readouterr().out == "acme\n"
    assert Tenant.objects.get().name == "Acme Inc."
    with pytest.raises(CommandError, match="already"):
        call_command("create_tenant", "acme")
    with pytest.raises(CommandError, match="Lower-case"):
        call_command("create_tenant", "Acme!")


def test_an_operator_gives_a_role_and_takes_it_away(client_of: Clients, acme: Tenant, globex: Tenant) -> None:
    operator = client_of(None)
    User.objects.create_user("ada")
    for slug in ("acme", "globex"):
        assert operator.put(f"/api/v1/tenants/{slug}/members/ada", {"role": "editor"}, format="json").status_code == 200
    [member] = operator.get("/api/v1/tenants/acme/members").json()["results"]
    assert (member["username"], member["role"]) == ("ada", "editor")
    assert operator.delete("/api/v1/tenants/acme/members/ada").status_code == 204
    assert operator.get("/api/v1/tenants/acme/members").json()["results"] == []
    assert [str(member) for member in Member.objects.all()] == ["ada of globex"]
    events = Event.objects.for_tenant(acme).order_by("number").values_list("action", flat=True)
    assert list(events)[-2:] == [Action.MEMBER_ADDED, Action.MEMBER_REMOVED]


def test_members_who_are_not_there_are_named_and_tenants_keys_reach_none(
    client_of: Clients, acme: Tenant, globex: Tenant
) -> None:
    operator = client_of(None)
    User.objects.create_user("ada")
    missing = operator.delete("/api/v1/tenants/acme/members/ada")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_a_member")
    assert operator.put("/api/v1/tenants/acme/members/nobody", {"role": "editor"}, format="json").status_code == 404
    assert operator.put("/api/v1/tenants/acme/members/ada", {"role": "king"}, format="json").status_code == 400
    assert operator.get("/api/v1/tenants/initech/members").status_code == 404
    for key in (client_of(acme), client_of(globex)):
        assert key.get("/api/v1/tenants/acme/members").status_code in (401, 403)
        assert key.put("/api/v1/tenants/acme/members/ada", {"role": "owner"}, format="json").status_code in (401, 403)
