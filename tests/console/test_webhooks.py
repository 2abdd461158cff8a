"""Webhooks in the console: added with a secret that is shown once, tried, disabled and deleted, by owners alone."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from audit.models import Action, Event
from audit.services import SYSTEM
from tenants.models import Role, Tenant
from webhooks import signing
from webhooks.models import Delivery, Endpoint, State
from webhooks.services import create_endpoint

from .forms import assert_by, errors, path, recorded

URL = "https://hooks.example.com/in?token=s3cret"


@pytest.fixture
def endpoint(acme: Tenant) -> Endpoint:
    return create_endpoint(acme, URL, ["rollout.*"], actor=SYSTEM)[0]


def test_one_is_added_and_its_secret_shown_this_once(desk: Client, operator: User, acme: Tenant) -> None:
    fields: dict[str, Any] = {"tenant": str(acme.pk), "url": URL, "events": ["rollout.*", "budget.*"]}
    answer = desk.post(path(Endpoint, "add"), fields)
    endpoint = Endpoint.objects.get()
    secret = signing.secret_of(endpoint.salt)
    assert secret in answer.content.decode()
    assert endpoint.events == ["budget.*", "rollout.*"]
    assert_by(recorded(Action.WEBHOOK_CREATED), operator)
    page = desk.get(path(Endpoint, "change", endpoint.pk)).content.decode()
    assert secret not in page
    assert endpoint.salt not in page
    assert "url" in errors(desk.post(path(Endpoint, "add"), fields))  # there is one already
    for url in ("ftp://hooks.example.com", "http://hooks.example.com/x", "https://127.0.0.1/", "https://10.0.0.8/x"):
        assert "url" in errors(desk.post(path(Endpoint, "add"), {**fields, "url": url}))
    assert "events" in errors(desk.post(path(Endpoint, "add"), {**fields, "events": ["moon.*"]}))


def test_it_is_tried_disabled_enabled_given_a_new_secret_and_deleted(
    desk: Client, operator: User, endpoint: Endpoint
) -> None:
    def do(verb: str) -> Any:
        return desk.post(path(Endpoint, verb, endpoint.pk))

    do("ping")
    assert Delivery.objects.get().event == "webhook.ping"
    do("disable")
    assert not Endpoint.objects.get().active
    assert_by(recorded(Action.WEBHOOK_CHANGED), operator)
    do("ping")  # doesn't apply now
    assert Delivery.objects.count() == 1
    do("enable")
    assert Endpoint.objects.get().active
    rotated = do("rotate").content.decode()
    assert signing.secret_of(Endpoint.objects.get().salt) in rotated
    assert_by(recorded(Action.WEBHOOK_ROTATED), operator)
    do("remove")
    assert_by(recorded(Action.WEBHOOK_DELETED), operator)
    assert desk.get(path(Endpoint, "change", endpoint.pk)).status_code == 302
    desk.cookies.pop("messages")  # it names what was asked for
    assert str(endpoint.pk) not in desk.get(path(Endpoint, "changelist")).content.decode()


def test_deliveries_are_listed_with_their_last_answer(desk: Client, acme: Tenant, endpoint: Endpoint) -> None:
    told: dict[str, Any] = {"tenant": acme, "endpoint": endpoint, "event": "rollout.paused"}
    entry = {"at": "2026-01-01T00:00:00Z", "status": 503, "error": "", "milliseconds": 12}
    Delivery.objects.create(**told, state=State.FAILED, attempts=9, log=[{**entry, "status": 500}, entry])
    page = desk.get(path(Endpoint, "change", endpoint.pk)).content.decode()
    assert "rollout.paused" in page
    assert "503 after 12 ms" in page
    assert "500 after" not in page


def test_owners_alone_change_them_and_see_whole_addresses(
    acme: Tenant, globex: Tenant, endpoint: Endpoint, member_of: Callable[..., Client]
) -> None:
    owner, editor, stranger = (
        member_of(tenant, role) for tenant, role in ((acme, Role.OWNER), (acme, Role.EDITOR), (globex, Role.OWNER))
    )
    shown = path(Endpoint, "change", endpoint.pk)
    assert "s3cret" in owner.get(shown).content.decode()
    assert "s3cret" not in editor.get(shown).content.decode()
    assert "hooks.example.com" in editor.get(shown).content.decode()
    assert stranger.get(shown).status_code == 302
    assert "hooks.example.com" not in stranger.get(path(Endpoint, "changelist")).content.decode()
    events = Event.objects.count()
    for verb in ("ping", "disable", "rotate", "remove"):
        assert editor.post(path(Endpoint, verb, endpoint.pk)).status_code == 403
        assert stranger.post(path(Endpoint, verb, endpoint.pk)).status_code == 302
    fields: dict[str, Any] = {"tenant": str(acme.pk), "url": "https://other.example", "events": ["*"]}
    assert editor.post(path(Endpoint, "add"), fields).status_code == 403
    assert "tenant" in errors(stranger.post(path(Endpoint, "add"), fields))
    assert (Event.objects.count(), Delivery.objects.count(), Endpoint.objects.get().active) == (events, 0, True)
    assert owner.post(path(Endpoint, "disable", endpoint.pk)).status_code == 302
    assert not Endpoint.objects.get().active
