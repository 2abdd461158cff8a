"""Adapters, versions, aliases and rollouts, as they change through the console's forms, on the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.test import Client

from audit.models import Action
from audit.services import SYSTEM
from registry.models import STABLE, Adapter, Alias, State, Version
from rollouts import models as rollouts
from rollouts.models import Rollout
from rollouts.services import Plan, changes, create_rollout
from tenants.models import Role, Tenant

from .conftest import Commits, Yard
from .forms import assert_by, errors, path, ready, recorded


def test_an_adapter_is_made_and_deleted_on_the_record(desk: Client, operator: User, ours: Yard) -> None:
    fields = {"tenant": str(ours.tenant.pk), "name": "fresh"}
    desk.post(path(Adapter, "add"), fields)
    fresh = Adapter.objects.get(name="fresh")
    assert_by(recorded(Action.ADAPTER_CREATED), operator)
    assert "name" in errors(desk.post(path(Adapter, "add"), fields))
    desk.post(path(Adapter, "remove", fresh.pk))
    assert_by(recorded(Action.ADAPTER_DELETED), operator)
    desk.post(path(Adapter, "remove", ours.adapter.pk))
    assert list(Adapter.objects.all()) == [ours.adapter]


def test_an_alias_moves_only_from_where_the_person_saw_it(
    desk: Client, operator: User, ours: Yard, peft_folder: Path, django_capture_on_commit_callbacks: Commits
) -> None:
    second = ready(desk, ours.adapter, peft_folder, django_capture_on_commit_callbacks)
    form = desk.get(path(Alias, "move", ours.alias.pk)).context["form"]
    seen = {"version": str(second.number), "expected": str(form["expected"].value())}
    assert desk.post(path(Alias, "move", ours.alias.pk), seen).status_code == 302
    assert Alias.objects.get().version == second
    assert_by(recorded(Action.ALIAS_MOVED), operator)
    stale = errors(desk.post(path(Alias, "move", ours.alias.pk), {**seen, "version": "1"}))
    assert "read it again" in stale["__all__"][0]
    assert "version" in errors(desk.post(path(Alias, "move", ours.alias.pk), {"version": "2", "expected": "4"}))


def test_a_version_becomes_stable_and_the_other_is_archived(
    desk: Client,
    operator: User,
    ours: Yard,
    peft_folder: Path,
    django_capture_on_commit_callbacks: Commits,
    settings: Any,
) -> None:
    second = ready(desk, ours.adapter, peft_folder, django_capture_on_commit_callbacks)
    desk.get(path(Version, "archive", ours.ready.pk))
    assert Version.objects.get(pk=ours.ready.pk).state == State.READY
    expected = desk.get(path(Version, "make-stable", second.pk)).context["form"]["expected"].value()
    desk.post(path(Version, "make-stable", second.pk), {"expected": str(expected)})
    assert Alias.objects.get(name=STABLE).version == second
    assert "rolled back to it" in errors(desk.post(path(Version, "archive", ours.ready.pk)))["__all__"][0]
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"rollback_hours": 0})
    desk.post(path(Version, "archive", ours.ready.pk))
    assert Version.objects.get(pk=ours.ready.pk).state == State.ARCHIVED
    assert_by(recorded(Action.VERSION_ARCHIVED), operator)
    assert desk.get(path(Version, "change", ours.ready.pk)).status_code == 200


def test_an_alias_is_rolled_back_and_shows_its_history(
    desk: Client, operator: User, ours: Yard, peft_folder: Path, django_capture_on_commit_callbacks: Commits
) -> None:
    second = ready(desk, ours.adapter, peft_folder, django_capture_on_commit_callbacks)
    assert "roll-back" not in desk.get(path(Alias, "change", ours.alias.pk)).content.decode()
    desk.post(path(Alias, "move", ours.alias.pk), {"version": "4", "expected": "1", "reason": "<b>fresh</b>"})
    assert Alias.objects.get().version == second
    page = desk.get(path(Alias, "change", ours.alias.pk)).content.decode()
    assert "&lt;b&gt;fresh&lt;/b&gt;" in page
    assert path(Alias, "roll-back", ours.alias.pk) in page
    desk.post(path(Alias, "roll-back", ours.alias.pk), {"expected": "4", "reason": ""})
    assert Alias.objects.get().version == ours.ready
    assert_by(recorded(Action.ALIAS_ROLLED_BACK), operator)


def test_a_version_is_annotated_and_deleted_on_the_record(desk: Client, operator: User, ours: Yard) -> None:
    desk.post(path(Version, "annotate", ours.rejected.pk), {"notes": "no good"})
    assert_by(recorded(Action.VERSION_ANNOTATED), operator)
    assert "no good" in desk.get(path(Version, "change", ours.rejected.pk)).content.decode()
    desk.post(path(Version, "remove", ours.rejected.pk))
    assert_by(recorded(Action.VERSION_DELETED), operator)
    assert Version.objects.get(pk=ours.rejected.pk).state == State.DELETED
    assert desk.get(path(Version, "change", ours.rejected.pk)).status_code == 200
    desk.post(path(Version, "remove", ours.ready.pk))
    assert Version.objects.get(pk=ours.ready.pk).state == State.READY


def test_while_the_engine_is_away_pages_say_so_and_verbs_fail_on_the_form(desk: Client, ours: Yard) -> None:
    assert "The engine does not answer." in desk.get(path(Version, "change", ours.ready.pk)).content.decode()
    for verb in ("preload", "evict", "pin"):
        assert "__all__" in errors(desk.post(path(Version, verb, ours.ready.pk)))


def test_an_alias_is_made_and_removed_on_the_record(desk: Client, operator: User, ours: Yard) -> None:
    desk.post(path(Adapter, "new-alias", ours.adapter.pk), {"name": "champion", "version": "1"})
    champion = Alias.objects.get(name="champion")
    assert_by(recorded(Action.ALIAS_CREATED), operator)
    assert "__all__" in errors(desk.post(path(Adapter, "new-alias", ours.adapter.pk), {"name": STABLE, "version": "1"}))
    assert "name" in errors(desk.post(path(Adapter, "new-alias", ours.adapter.pk), {"name": "v7", "version": "1"}))
    desk.post(path(Alias, "remove", champion.pk))
    assert_by(recorded(Action.ALIAS_DELETED), operator)
    assert [alias.name for alias in Alias.objects.all()] == [STABLE]


def test_an_editor_pauses_resumes_and_aborts_a_rollout_and_a_viewer_does_not(
    member_of: Callable[..., Client], acme: Tenant, ours: Yard
) -> None:
    digest = f"sha256:{'9' * 64}"
    Version.objects.create(adapter=ours.adapter, number=9, state=State.READY, digest=digest, uploader="test")
    rollout = create_rollout(ours.adapter, Plan(version=9), actor=SYSTEM)
    Rollout.objects.update(state=rollouts.State.PRELOADING)
    changes.enter(Rollout.objects.get(), rollout.steps.get(number=0), actor=SYSTEM)
    editor, viewer = member_of(acme, Role.EDITOR), member_of(acme)
    assert viewer.post(path(Rollout, "abort", rollout.pk)).status_code == 403
    for verb, state in (("pause", "paused"), ("resume", "progressing"), ("abort", "rolling_back")):
        assert editor.post(path(Rollout, verb, rollout.pk), {"reason": "<b>odd</b>"}).status_code == 302
        assert Rollout.objects.get().state == state
    assert Rollout.objects.get().reasons == ["<b>odd</b>"]
    assert "<b>odd</b>" not in editor.get(path(Rollout, "change", rollout.pk)).content.decode()
