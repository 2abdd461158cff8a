"""What a member may do in the console by their role, and nothing at a stranger's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from apikeys.models import ApiKey
from audit.models import Event
from registry.models import Adapter, Version
from tenants.models import Role

from .conftest import Yard
from .forms import PLAINTEXT, errors, path, two_files

EDITORS = {"upload", "new-alias", "move", "roll-back", "remove", "archive", "make-stable", "annotate"}
EDITORS |= {"preload", "evict", "pin", "unpin"}


@pytest.mark.parametrize(
    ("role", "verbs"),
    [
        (Role.VIEWER, set()),
        (Role.EDITOR, EDITORS),
        (Role.OWNER, {*EDITORS, "issue-key", "rotate", "revoke"}),
    ],
)
def test_a_member_may_what_their_role_may_and_nothing_at_a_stranger_s(
    member_of: Callable[..., Client], ours: Yard, strangers: Yard, role: Role, verbs: set[str]
) -> None:
    from console.site import site

    member = member_of(ours.tenant, role)
    before = Event.objects.count()
    for admin in site._registry.values():
        for verb in admin.verbs:  # type: ignore[attr-defined]
            for yard in (ours, strangers):
                for row in _rows(yard, admin.model):
                    page = path(admin.model, verb.slug, row.pk)
                    allowed = yard is ours and verb.slug in verbs and (admin.model, verb.slug, role) not in OWNERS_ONLY
                    got, posted = member.get(page), member.post(page) if not allowed else None
                    assert (got.status_code in (200, 302) and got.headers.get("Location") != "/") is allowed, page
                    assert posted is None or posted.status_code in (302, 403)
    assert Event.objects.count() == before


OWNERS_ONLY = {(Adapter, "remove", Role.EDITOR), (Version, "remove", Role.EDITOR)}


def _rows(yard: Yard, model: type[Any]) -> list[Any]:
    every = [yard.tenant, yard.adapter, yard.ready, yard.rejected, yard.alias, yard.key]
    return [row for row in every if isinstance(row, model)]


def test_an_owner_issues_keys_for_their_tenant_alone(
    member_of: Callable[..., Client], ours: Yard, strangers: Yard
) -> None:
    owner = member_of(ours.tenant, Role.OWNER)
    count = ApiKey.objects.count()
    wanted = {"name": "x", "scopes": ["inference"], "expires": ""}
    assert "tenant" in errors(owner.post(path(ApiKey, "add"), {**wanted, "tenant": str(strangers.tenant.pk)}))
    assert "tenant" in errors(owner.post(path(ApiKey, "add"), {**wanted, "tenant": ""}))
    platform = {**wanted, "scopes": ["platform"], "tenant": str(ours.tenant.pk)}
    assert "scopes" in errors(owner.post(path(ApiKey, "add"), platform))
    assert ApiKey.objects.count() == count
    mine = owner.post(path(ApiKey, "add"), {**wanted, "tenant": str(ours.tenant.pk)})
    assert PLAINTEXT.search(mine.content.decode())


def test_an_editor_uploads_to_their_tenant_alone(
    member_of: Callable[..., Client], ours: Yard, strangers: Yard, peft_folder: Path
) -> None:
    editor = member_of(ours.tenant, Role.EDITOR)
    foreign = {"adapter": str(strangers.adapter.pk), "files": two_files(peft_folder)}
    assert "adapter" in errors(editor.post(path(Version, "add"), foreign))
    assert "globex" not in editor.get(path(Version, "add"), {"adapter": str(strangers.adapter.pk)}).content.decode()
    assert editor.post(path(Version, "add"), {**foreign, "adapter": str(ours.adapter.pk)}).status_code in (200, 302)
    assert "tenant" in errors(editor.post(path(Adapter, "add"), {"tenant": str(strangers.tenant.pk), "name": "x"}))
    assert strangers.adapter.versions.count() == 3


def test_links_of_other_pages_survive_garbage_in_the_address(desk: Client, ours: Yard) -> None:
    for page in (path(Version, "add") + "?adapter=x", path(ApiKey, "add") + "?tenant=%3Cscript%3E"):
        assert desk.get(page).status_code == 200
        assert desk.post(page, {"adapter": "x", "tenant": "x", "name": "x"}).status_code == 200
