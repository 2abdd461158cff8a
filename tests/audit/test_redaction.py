"""What is recorded of a change: everything but secrets, which are known by their type."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction
from pydantic import SecretBytes, SecretStr

from apikeys.models import ApiKey
from apikeys.services import issue
from audit.models import Action, Event
from audit.redaction import Secret, difference, plain, snapshot
from audit.services import SYSTEM, Actor, record
from audit.verification import verify
from tenants.models import Role, Tenant
from tenants.services import add_member


def test_secrets_are_redacted_by_type_at_any_depth() -> None:
    data = {
        "harmless": Secret("s3cret"),
        "list": [{"x": SecretStr("s3cret")}, SecretBytes(b"s3cret")],
        "secret": "shown",
    }
    assert plain(data) == {"harmless": "[redacted]", "list": [{"x": "[redacted]"}, "[redacted]"], "secret": "shown"}
    assert "s3cret" not in f"{Secret('s3cret')} {Secret('s3cret')!r} {data}"


def test_fields_of_a_secret_type_are_redacted_and_that_they_changed_is_told(acme: Tenant) -> None:
    first, _ = issue(acme, name="one", scopes=["inference"], actor=SYSTEM)
    second, _ = issue(acme, name="two", scopes=["inference"], actor=SYSTEM)
    before, after = (snapshot(key, ["name", "mac", "tenant"]) for key in (first, second))
    changed = plain(difference(before, after))
    assert changed == {"before": {"name": "one", "mac": "[redacted]"}, "after": {"name": "two", "mac": "[redacted]"}}
    assert difference(before, before) == {}
    assert ApiKey._meta.get_field("mac").deconstruct()[1] == "django.db.models.CharField"


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, float("nan"), float("inf")])
def test_what_has_no_plain_form_is_never_recorded_by_its_text(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        plain({"value": value})


def test_what_postgresql_would_refuse_is_recorded_all_the_same(acme: Tenant) -> None:
    data = {"nul": "a\0b", "surrogate": "\ud800", "\0": [1.5, Decimal("0.10"), datetime(2026, 1, 1, tzinfo=UTC)]}
    actor = Actor("key", "k", user_agent="curl/8\n\0" + "x" * 999)
    with transaction.atomic():
        event = record(Action.TENANT_CHANGED, tenant=acme, actor=actor, target="acme", data=data)
    event = Event.objects.get(pk=event.pk)
    assert event.data == {"nul": "a\ufffdb", "surrogate": "?", "\ufffd": ["1.5", "0.10", "2026-01-01T00:00:00Z"]}
    assert (event.user_agent[:8], len(event.user_agent)) == ("curl/8\ufffd\ufffd", 255)
    assert verify(acme) == []


def test_the_user_agent_is_kept_and_guarded_by_the_hash(acme: Tenant, client_of: Any, sql: Any) -> None:
    client = client_of(acme)
    body = {"name": "x", "scopes": ["inference"]}
    client.post("/api/v1/keys", body, format="json", headers={"user-agent": "curl/8.1"})
    (row,) = client.get("/api/v1/audit?limit=1").json()["results"]
    assert row["user_agent"] == "curl/8.1"
    sql("UPDATE audit_event SET user_agent = '' WHERE number = %s", row["number"])
    assert [problem.kind for problem in verify(acme)] == ["edited"]


def test_a_members_role_is_recorded_before_and_after(acme: Tenant, django_user_model: Any) -> None:
    user = django_user_model.objects.create_user("ada")
    for role in (Role.VIEWER, Role.OWNER):
        add_member(acme, user, role, actor=SYSTEM)
    first, second = Event.objects.filter(action=Action.MEMBER_ADDED).order_by("number")
    assert first.data == {"before": None, "role": "viewer", "username": "ada"}
    assert second.data == {"before": "viewer", "role": "owner", "username": "ada"}
