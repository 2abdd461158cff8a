"""Keys from the console's forms: shown once, kept nowhere, and revoked on the record."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client

from apikeys import services as apikeys
from apikeys.models import ApiKey, Scope
from audit.models import Action, Event
from audit.services import SYSTEM
from tenants.models import Tenant

from .forms import PLAINTEXT, assert_by, errors, path, recorded


def test_a_new_key_is_shown_once_and_kept_nowhere(
    desk: Client, operator: User, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = {"tenant": str(acme.pk), "name": "app", "scopes": ["inference"], "adapters": "a, b", "expires": "30"}
    answer = desk.post(path(ApiKey, "add"), wanted)
    assert answer.status_code == 200
    [plaintext] = PLAINTEXT.findall(answer.content.decode())
    assert "no-store" in answer.headers["Cache-Control"]
    key = apikeys.verify(plaintext)
    assert key is not None
    assert (key.tenant, key.adapters, key.scopes) == (acme, ["a", "b"], ["inference"])
    assert key.expires_at is not None
    assert_by(recorded(Action.KEY_ISSUED), operator)
    secret = plaintext.rpartition("_")[2]
    for page in ("/", path(ApiKey, "changelist"), path(ApiKey, "change", key.pk), "/audit/event/", path(ApiKey, "add")):
        assert secret not in desk.get(page).content.decode()
    assert secret not in str(desk.cookies) + caplog.text + str(list(Event.objects.values()))
    assert all(secret not in str(session.get_decoded()) for session in Session.objects.all())


def test_a_key_is_issued_for_the_tenant_that_the_page_was_about(desk: Client, acme: Tenant) -> None:
    form = desk.get(path(Tenant, "issue-key", acme.pk), follow=True)
    assert form.context["form"]["tenant"].value() == str(acme.pk)
    assert re.search(rf'<option value="{acme.pk}"[^>]*selected', form.content.decode())


def test_an_operators_key_has_no_tenant_and_one_scope(desk: Client, acme: Tenant) -> None:
    operators = desk.post(path(ApiKey, "add"), {"tenant": "", "name": "op", "scopes": ["platform"], "expires": ""})
    assert PLAINTEXT.search(operators.content.decode())
    mixed = {"tenant": str(acme.pk), "name": "op", "scopes": ["platform", "inference"], "expires": ""}
    assert "scopes" in errors(desk.post(path(ApiKey, "add"), mixed))
    assert ApiKey.objects.count() == 1


def test_a_key_is_rotated_and_revoked_on_the_record(desk: Client, operator: User, acme: Tenant) -> None:
    old, first = apikeys.issue(acme, name="app", scopes=[Scope.INFERENCE], actor=SYSTEM)
    [second] = PLAINTEXT.findall(desk.post(path(ApiKey, "rotate", old.pk), {"grace": "1"}).content.decode())
    assert apikeys.verify(first)
    new = apikeys.verify(second)
    assert new is not None
    assert_by(recorded(Action.KEY_ROTATED), operator)
    desk.post(path(ApiKey, "revoke", new.pk))
    assert apikeys.verify(second) is None
    assert_by(recorded(Action.KEY_REVOKED), operator)
    again = desk.post(path(ApiKey, "revoke", new.pk))
    assert again.headers["Location"] == path(ApiKey, "change", new.pk)
    assert Event.objects.filter(action=Action.KEY_REVOKED).count() == 1


def test_reloading_the_page_of_a_new_key_issues_no_second_one(desk: Client, acme: Tenant) -> None:
    page = desk.get(path(ApiKey, "add"))
    once = str(page.context["form"]["once"].value())
    sent = {"tenant": str(acme.pk), "name": "app", "scopes": ["inference"], "expires": "", "once": once}
    assert "name" in errors(desk.post(path(ApiKey, "add"), {**sent, "name": ""})), "a form with an error can be mended"
    assert PLAINTEXT.search(desk.post(path(ApiKey, "add"), sent).content.decode())
    again = desk.post(path(ApiKey, "add"), sent, follow=True)
    assert "sent before" in again.content.decode()
    assert not PLAINTEXT.search(again.content.decode())
    assert ApiKey.objects.count() == 1
    another = {**sent, "once": str(desk.get(path(ApiKey, "add")).context["form"]["once"].value())}
    assert PLAINTEXT.search(desk.post(path(ApiKey, "add"), another).content.decode())


def test_reloading_the_page_of_a_rotated_key_rotates_it_once(desk: Client, acme: Tenant) -> None:
    old, _ = apikeys.issue(acme, name="app", scopes=[Scope.INFERENCE], actor=SYSTEM)
    once = str(desk.get(path(ApiKey, "rotate", old.pk)).context["form"]["once"].value())
    for _ in range(2):
        desk.post(path(ApiKey, "rotate", old.pk), {"grace": "24", "once": once})
    assert ApiKey.objects.count() == 2
    assert Event.objects.filter(action=Action.KEY_ROTATED).count() == 1
