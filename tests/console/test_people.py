"""Tenants and people, as an operator changes them through the console's forms, on the record."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.test import Client

from audit.models import Action, Event
from audit.services import SYSTEM
from audit.verification import verify
from tenants import services
from tenants.models import Member, Role, Tenant
from tenants.services import add_member

from .conftest import PASSWORD
from .forms import assert_by, errors, path, recorded

QUOTAS = {name: str(getattr(Tenant(), name)) for name in sorted(services.QUOTAS)}


def test_a_tenant_is_made_and_changed_on_the_record(desk: Client, operator: User) -> None:
    answer = desk.post(path(Tenant, "add"), {"slug": "initech", "name": "Initech", "weight": "2"})
    tenant = Tenant.objects.get(slug="initech")
    assert answer.headers["Location"] == path(Tenant, "change", tenant.pk)
    assert_by(recorded(Action.TENANT_CREATED), operator)
    desk.post(path(Tenant, "edit", tenant.pk), {**QUOTAS, "name": "Initech Ltd", "weight": "2"})
    tenant.refresh_from_db()
    assert (tenant.name, tenant.weight, tenant.active) == ("Initech Ltd", 2.0, False)
    assert recorded(Action.TENANT_CHANGED).data["after"] == {"name": "Initech Ltd", "active": False}
    assert verify() == []


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"slug": "acme", "name": "A", "weight": "1"}, "slug"),
        ({"slug": "No Slug", "name": "A", "weight": "1"}, "slug"),
        ({"slug": "a\0b", "name": "A", "weight": "1"}, "slug"),
        ({"slug": "x", "name": "", "weight": "1"}, "name"),
        ({"slug": "x", "name": "A", "weight": "0"}, "weight"),
        ({"slug": "x", "name": "A", "weight": "nan"}, "weight"),
        ({"slug": "x", "name": "A", "weight": "1e999"}, "weight"),
    ],
)
def test_a_tenant_that_makes_no_sense_is_refused_at_its_field(
    desk: Client, acme: Tenant, fields: dict[str, str], at: str
) -> None:
    assert list(errors(desk.post(path(Tenant, "add"), fields))) == [at]
    assert list(Tenant.objects.all()) == [acme]


def test_a_person_is_added_joins_a_tenant_and_logs_in(
    desk: Client, operator: User, acme: Tenant, globex: Tenant, client: Client
) -> None:
    desk.post(path(User, "add"), {"username": "ada", "email": "", "password": PASSWORD})
    ada = User.objects.get(username="ada")
    assert_by(recorded(Action.USER_CREATED), operator)
    desk.post(path(Tenant, "add-member", acme.pk), {"username": "ada", "role": Role.EDITOR})
    assert Member.objects.get(user=ada).tenant == acme
    assert_by(recorded(Action.MEMBER_ADDED), operator)
    assert client.post("/login/", {"username": "ada", "password": PASSWORD}).headers["Location"] == "/"
    page = client.get("/tenants/tenant/").content.decode()
    assert "acme" in page
    assert "globex" not in page


def test_a_weak_password_an_unknown_person_and_a_taken_name_are_refused(
    desk: Client, operator: User, acme: Tenant
) -> None:
    assert "password" in errors(desk.post(path(User, "add"), {"username": "ada", "password": "short"}))
    assert "username" in errors(desk.post(path(User, "add"), {"username": "olivia", "password": PASSWORD}))
    assert "username" in errors(desk.post(path(User, "add"), {"username": "a b", "password": PASSWORD}))
    no_one = desk.post(path(Tenant, "add-member", acme.pk), {"username": "nobody", "role": "viewer"})
    assert "username" in errors(no_one)
    assert list(User.objects.all()) == [operator]


def test_the_last_operator_cannot_be_taken_away(desk: Client, operator: User) -> None:
    refused = errors(desk.post(path(User, "edit", operator.pk), {"email": "", "is_active": "on"}))
    assert "Nobody else is an operator" in refused["__all__"][0]
    operator.refresh_from_db()
    assert operator.is_superuser


def test_passwords_change_on_the_record_and_are_not_in_it(desk: Client, operator: User) -> None:
    new = "another long enough one"
    fields = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert desk.post("/password_change/", {**fields, "old_password": "wrong"}).status_code == 200
    assert not Event.objects.filter(action=Action.USER_PASSWORD_CHANGED).exists()
    assert desk.post("/password_change/", fields).status_code == 302
    assert_by(recorded(Action.USER_PASSWORD_CHANGED), operator)
    ada = User.objects.create_user("ada", is_staff=True)
    desk.post(path(User, "set-password", ada.pk), {"password": new})
    ada.refresh_from_db()
    assert ada.check_password(new)
    assert recorded(Action.USER_PASSWORD_CHANGED).target == f"user:{ada.pk}"
    assert new not in str(list(Event.objects.values()))


def test_a_cleared_quota_is_refused_at_its_field_and_a_changed_one_is_set(desk: Client, acme: Tenant) -> None:
    form = {**QUOTAS, "name": "Acme", "weight": "1", "active": "on"}
    for quota in QUOTAS:
        assert list(errors(desk.post(path(Tenant, "edit", acme.pk), {**form, quota: ""}))) == [quota]
    desk.post(path(Tenant, "edit", acme.pk), {**form, "quota_pins": "7"})
    assert recorded(Action.TENANT_CHANGED).data["after"] == {"quota_pins": 7}


def test_a_member_is_removed_on_the_record_and_sees_nothing_more(
    desk: Client, operator: User, acme: Tenant, globex: Tenant, browser: Callable[[User], Client]
) -> None:
    ada, eve = (User.objects.create_user(name, is_staff=True) for name in ("ada", "eve"))
    for user, tenant in ((ada, acme), (ada, globex), (eve, acme)):
        add_member(tenant, user, Role.OWNER, actor=SYSTEM)
    hers = browser(ada)
    assert "acme" in hers.get("/tenants/tenant/").content.decode()
    desk.post(path(Tenant, "remove-member", acme.pk), {"member": str(ada.pk)})
    assert_by(recorded(Action.MEMBER_REMOVED), operator)
    assert recorded(Action.MEMBER_REMOVED).data == {"username": "ada", "before": "owner"}
    assert [str(member) for member in Member.objects.order_by("tenant__slug")] == ["eve of acme", "ada of globex"]
    page = hers.get("/tenants/tenant/").content.decode()
    assert "globex" in page
    assert "acme" not in page
    assert "member" in errors(desk.post(path(Tenant, "remove-member", acme.pk), {"member": str(ada.pk)}))


def test_members_remove_nobody(member_of: Callable[..., Client], acme: Tenant) -> None:
    owner = member_of(acme, Role.OWNER)
    member = acme.members.get()
    assert owner.post(path(Tenant, "remove-member", acme.pk), {"member": str(member.user_id)}).status_code == 403
    assert acme.members.get() == member


def test_names_are_shown_as_they_are_written(desk: Client, acme: Tenant, globex: Tenant) -> None:
    xerxes = User.objects.create_user("xerxes", is_staff=True)
    for page, name in ((path(Tenant, "change", globex.pk), "globex"), (path(User, "change", xerxes.pk), "xerxes")):
        text = desk.get(page).content.decode().replace(">Globex<", "")  # the tenant's name, which is not its slug
        assert name in text
        assert name.capitalize() not in text
