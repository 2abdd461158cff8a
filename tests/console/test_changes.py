"""What people change through the console's forms: by the services, on the record, and no further than they may."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from adapters.limits import DEFAULT
from apikeys import services as apikeys
from apikeys.models import ApiKey, Scope
from audit.models import Action, Event
from audit.services import SYSTEM
from audit.verification import verify
from registry.models import STABLE, Adapter, Alias, State, Version
from registry.services import validate_version
from registry.services.versions import TASK
from rollouts import models as rollouts
from rollouts.models import Rollout
from rollouts.services import Plan, changes, create_rollout
from tenants.models import Member, Role, Tenant

from .conftest import PASSWORD, Commits, Yard

PLAINTEXT = re.compile(r"ly_[0-9a-f]{12}_[0-9a-f]{64}")
NAMES = ("adapter_config.json", "adapter_model.safetensors")


def path(model: type[Any], page: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def recorded(action: Action) -> Event:
    return Event.objects.filter(action=action).latest("id")


def assert_by(event: Event, user: User) -> None:
    assert (event.actor_kind, event.actor_id, event.address) == ("user", str(user.pk), "192.0.2.7")
    assert event.request_id


def errors(answer: Any) -> dict[str, list[str]]:
    assert answer.status_code == 200
    return {name: list(messages) for name, messages in answer.context["form"].errors.items()}


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What workers have been asked for; the broker is the one thing that these tests do without."""
    sent: list[tuple[str, ...]] = []
    send = type(current_app.signature(TASK)).apply_async

    def noted(signature: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append((signature.task, *signature.args))
        return send(signature, *args, **kwargs)

    monkeypatch.setattr(type(current_app.signature(TASK)), "apply_async", noted)
    return sent


# Tenants and people


def test_a_tenant_is_made_and_changed_on_the_record(desk: Client, operator: User) -> None:
    answer = desk.post(path(Tenant, "add"), {"slug": "initech", "name": "Initech", "weight": "2"})
    tenant = Tenant.objects.get(slug="initech")
    assert answer.headers["Location"] == path(Tenant, "change", tenant.pk)
    assert_by(recorded(Action.TENANT_CREATED), operator)
    desk.post(path(Tenant, "edit", tenant.pk), {"name": "Initech Ltd", "weight": "2"})
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


# Keys


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
    old, first = apikeys.issue(acme, name="app", scopes=[Scope.INFERENCE], actor=_system())
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


def _system() -> Any:
    from audit.services import SYSTEM

    return SYSTEM


# Uploads


def two_files(folder: Path) -> list[SimpleUploadedFile]:
    return [SimpleUploadedFile(name, (folder / name).read_bytes()) for name in NAMES]


def test_uploading_peft_s_two_files_queues_a_validation_that_makes_them_ready(
    desk: Client,
    operator: User,
    ours: Yard,
    peft_folder: Path,
    queue: list[tuple[str, ...]],
    django_capture_on_commit_callbacks: Commits,
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        answer = desk.post(path(Version, "add"), {"adapter": str(ours.adapter.pk), "files": two_files(peft_folder)})
    version = Version.objects.get(state=State.UPLOADED, number=4)
    assert answer.headers["Location"] == path(Version, "change", version.pk)
    assert queue == [(TASK, str(version.pk))]
    assert version.uploader == f"user:{operator.pk}"
    assert_by(recorded(Action.VERSION_UPLOADED), operator)
    with django_capture_on_commit_callbacks(execute=True):
        validate_version(version.pk)
    page = desk.get(path(Version, "change", version.pk)).content.decode()
    assert "ready" in page
    assert ours.ready.digest in page  # the same files are the same digest


def test_an_archive_is_taken_and_a_rejected_one_says_why(
    desk: Client, ours: Yard, peft_folder: Path, django_capture_on_commit_callbacks: Commits
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(peft_folder / NAMES[0], "../" + NAMES[0])
        archive.write(peft_folder / NAMES[1], NAMES[1])
    file = SimpleUploadedFile("adapter.zip", packed.getvalue())
    with django_capture_on_commit_callbacks():
        desk.post(path(Version, "add"), {"adapter": str(ours.adapter.pk), "files": file})
    version = Version.objects.get(number=4)
    with django_capture_on_commit_callbacks(execute=True):
        validate_version(version.pk)
    version.refresh_from_db()
    page = desk.get(path(Version, "change", version.pk)).content.decode()
    assert version.state == State.REJECTED
    assert version.findings
    assert all(finding["rule"] in page for finding in version.findings)


@pytest.mark.parametrize("files", [[], [SimpleUploadedFile("a.bin", b"")], None])
def test_an_upload_of_nothing_is_refused_and_leaves_nothing(
    desk: Client, ours: Yard, home: Path, files: list[SimpleUploadedFile] | None
) -> None:
    before = sorted(home.rglob("quarantine/*"))
    fields = {"adapter": str(ours.adapter.pk)} | ({"files": files} if files is not None else {})
    assert "files" in errors(desk.post(path(Version, "add"), fields))
    assert Version.objects.count() == 3
    assert not list(home.rglob("quarantine/incoming/*"))
    assert {path for path in before if path.name != "incoming"} <= set(home.rglob("quarantine/*"))


def test_an_upload_over_the_limit_ends_with_a_message_and_leaves_nothing(
    desk: Client, ours: Yard, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.quarantine.DEFAULT", _limited(1000))
    big = SimpleUploadedFile(NAMES[1], b"x" * 100_000)
    answer = desk.post(path(Version, "add"), {"adapter": str(ours.adapter.pk), "files": big}, follow=True)
    assert "larger than the 1,000 bytes" in answer.content.decode()
    assert Version.objects.count() == 3
    assert not list(home.rglob("quarantine/incoming/*"))


def _limited(total: int) -> Any:
    from dataclasses import replace

    return replace(DEFAULT, total=total)


def test_an_upload_from_another_site_is_refused(operator: User, ours: Yard, peft_folder: Path) -> None:
    victim = Client(enforce_csrf_checks=True)
    victim.force_login(operator)
    fields = {"adapter": str(ours.adapter.pk), "files": two_files(peft_folder)}
    assert victim.post(path(Version, "add"), fields).status_code == 403
    page = victim.get(path(Version, "add")).content.decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token is not None
    fields = {"adapter": str(ours.adapter.pk), "files": two_files(peft_folder), "csrfmiddlewaretoken": token[1]}
    assert victim.post(path(Version, "add"), fields).status_code == 302


def test_files_of_somebody_who_may_not_upload_are_never_kept(
    client: Client, member_of: Callable[..., Client], ours: Yard, peft_folder: Path, home: Path
) -> None:
    def fields() -> dict[str, Any]:
        return {"adapter": str(ours.adapter.pk), "files": two_files(peft_folder)}

    assert client.post(path(Version, "add"), fields()).status_code == 302
    assert member_of(ours.tenant, Role.VIEWER).post(path(Version, "add"), fields()).status_code == 403
    assert Version.objects.count() == 3
    assert not list(home.rglob("quarantine/incoming/*"))


# Adapters, versions, aliases


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
    second = _ready(desk, ours.adapter, peft_folder, django_capture_on_commit_callbacks)
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
    second = _ready(desk, ours.adapter, peft_folder, django_capture_on_commit_callbacks)
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
    second = _ready(desk, ours.adapter, peft_folder, django_capture_on_commit_callbacks)
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


def _ready(desk: Client, adapter: Adapter, folder: Path, commits: Commits) -> Version:
    with commits():
        desk.post(path(Version, "add"), {"adapter": str(adapter.pk), "files": two_files(folder)})
    version = adapter.versions.latest("number")
    with commits(execute=True):
        validate_version(version.pk)
    return adapter.versions.get(pk=version.pk)


# Members

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
