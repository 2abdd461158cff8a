"""Versions never change; their states follow the arrows; a validation that was killed is done again."""

import json
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from adapters.confinement import Examined
from adapters.errors import Rejected
from adapters.manifest import Manifest
from adapters.store import Store
from audit.models import Event
from audit.services import SYSTEM
from registry import quarantine
from registry.errors import AdapterInUse, BaseModelChanged, NameTaken
from registry.models import Adapter, Alias, BaseModel, State, Version
from registry.services import (
    archive_version,
    blobs,
    create_adapter,
    delete_adapter,
    ensure_adapter,
    register_base_model,
    revalidate_stale,
    upload_version,
    validate_version,
    validation,
)
from registry.services.validation import ATTEMPTS, STALE, cell
from tenants.models import Tenant

Clients = Callable[..., APIClient]
Push = Callable[..., Version]
Commits = Callable[..., Any]
LeftBehind = Callable[[], set[str]]


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:" + "0" * 64},
        {"summary": {}},
        {"findings": [{"rule": "x"}]},
        {"size": 1},
        {"number": 9},
        {"uploader": "key:other"},
        {"created_at": timezone.now()},
        {"state": "validating"},
        {"state": "uploaded"},
        {"state": "rejected"},
    ],
    ids=lambda change: "-".join(map(str, change)),
)
def test_a_ready_version_never_changes(acme: Tenant, push: Push, change: dict[str, object]) -> None:
    version = push(acme, "support")
    with pytest.raises(DatabaseError), transaction.atomic():
        Version.objects.filter(pk=version.pk).update(**change)


def test_a_ready_or_archived_version_is_never_deleted(acme: Tenant, push: Push) -> None:
    version = push(acme, "support")
    Alias.objects.all().delete()
    for _ in range(2):
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("DELETE FROM registry_version WHERE id = %s", [version.pk])
        if version.state == State.READY:
            version = archive_version(version, actor=SYSTEM)
    assert version.state == State.ARCHIVED


@pytest.mark.parametrize("state", ["ready", "archived"])
def test_no_version_is_served_without_a_digest(acme: Tenant, push: Push, state: str) -> None:
    version = push(acme, "support", validate=False)
    with pytest.raises(DatabaseError), transaction.atomic():
        Version.objects.filter(pk=version.pk).update(state=state)


@pytest.mark.django_db(transaction=True)
def test_concurrent_uploads_get_numbers_without_gaps(acme: Tenant, base: BaseModel) -> None:
    adapter = ensure_adapter(acme, "support", actor=SYSTEM)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(4):
                upload_version(adapter, [ContentFile(b"x", "adapter_config.json")], actor=SYSTEM, enqueue=False)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert sorted(adapter.versions.values_list("number", flat=True)) == list(range(1, 17))


@pytest.mark.django_db(transaction=True)
def test_a_failed_upload_leaves_nothing(acme: Tenant, base: BaseModel, left_behind: LeftBehind) -> None:
    adapter = ensure_adapter(acme, "support", actor=SYSTEM)
    delete_adapter(adapter, actor=SYSTEM)
    with pytest.raises(Exception, match="no such adapter"):
        upload_version(adapter, [ContentFile(b"x", "adapter_config.json")], actor=SYSTEM)
    assert left_behind() == set()


def test_a_validation_killed_before_its_end_is_done_again(
    acme: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Commits
) -> None:
    version = push(acme, "support", validate=False)

    def killed(store: Store, folder: Path) -> Manifest:
        raise SystemExit  # as a worker that gets SIGTERM; on SIGKILL not even this much runs

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", killed)
        with pytest.raises(SystemExit):
            validate_version(version.pk)
    version.refresh_from_db()
    assert (version.state, version.attempts) == (State.VALIDATING, 1)
    (quarantine.folder(version.pk) / ".work-of-the-dead").mkdir()
    with django_capture_on_commit_callbacks(execute=True):
        assert validate_version(version.pk) == State.READY
    assert validate_version(version.pk) is None
    assert not quarantine.folder(version.pk).exists()
    assert Event.objects.for_tenant(acme).filter(action="adapter:version:validating").count() == 1
    assert Event.objects.for_tenant(acme).filter(action="adapter:version:ready").count() == 1


def test_of_two_workers_on_one_version_one_settles_it(
    acme: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Commits
) -> None:
    version = push(acme, "support", validate=False)
    announce = blobs.announce

    def overtaken(manifest: Manifest) -> None:
        monkeypatch.setattr(blobs, "announce", announce)
        with django_capture_on_commit_callbacks(execute=True):
            assert validate_version(version.pk) == State.READY
        announce(manifest)

    monkeypatch.setattr(blobs, "announce", overtaken)
    assert validate_version(version.pk) is None
    version.refresh_from_db()
    assert version.state == State.READY


def test_an_upload_that_kills_its_worker_every_time_is_rejected_at_last(
    acme: Tenant, push: Push, left_behind: LeftBehind, django_capture_on_commit_callbacks: Commits
) -> None:
    version = push(acme, "support", validate=False)
    Version.objects.filter(pk=version.pk).update(attempts=ATTEMPTS)
    with django_capture_on_commit_callbacks(execute=True):
        assert validate_version(version.pk) == State.REJECTED
    version.refresh_from_db()
    assert version.findings[0]["rule"] == "validation-failed"
    assert left_behind() == set()


@pytest.mark.parametrize("told", ["summary", "finding"])
def test_a_report_that_the_database_does_not_take_ends_in_a_rejection(
    told: str, acme: Tenant, push: Push, left_behind: LeftBehind, monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Commits,
) -> None:  # fmt: skip
    version = push(acme, "support", validate=False)

    def unstorable(files: list[Path], work: Path, spec: Any) -> Examined:
        if told == "summary":
            shutil.copy(next(file for file in files if file.suffix == ".json"), work)
            return Examined({"base_model": "a\0b"})
        refusal = Rejected.because("path", "Bad.")
        object.__setattr__(refusal.findings[0], "found", "\0")
        raise refusal

    monkeypatch.setattr(cell, "examine", unstorable)
    with django_capture_on_commit_callbacks(execute=True):
        assert validate_version(version.pk) == State.REJECTED
    version.refresh_from_db()
    assert [finding["rule"] for finding in version.findings] == ["report-unstorable"]
    assert {name for name in left_behind() if name.startswith("quarantine")} == set()


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_database_takes_is_rejected_with_its_place(
    text: str, acme: Tenant, push: Push, folder: Path
) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": text}))
    version = push(acme, "support", folder)
    assert version.state == State.REJECTED
    assert [finding["rule"] for finding in version.findings] == ["bad-text"]
    assert "base_model_name_or_path" in version.findings[0]["message"]


def test_an_upload_whose_files_are_gone_is_rejected(acme: Tenant, push: Push) -> None:
    version = push(acme, "support", validate=False)
    quarantine.discard(version.pk)
    assert validate_version(version.pk) == State.REJECTED
    version.refresh_from_db()
    assert version.findings[0]["rule"] == "upload-lost"


def test_stuck_versions_are_asked_for_again_and_orphans_swept(acme: Tenant, push: Push, home: Path) -> None:
    old, fresh = push(acme, "support", validate=False), push(acme, "support", 1, validate=False)
    Version.objects.filter(pk=old.pk).update(changed_at=timezone.now() - STALE - timedelta(seconds=1))
    assert revalidate_stale() == 1
    assert revalidate_stale() == 0
    orphans = [home / "quarantine" / "11111111-1111-1111-1111-111111111111", home / "quarantine" / "incoming" / "tmp1"]
    for orphan in orphans:
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_text("x")
    assert quarantine.sweep(keep=[old.pk, fresh.pk], older_than=3600) == 0
    assert quarantine.sweep(keep=[old.pk, fresh.pk], older_than=-1) == 2
    assert not any(orphan.exists() for orphan in orphans)
    assert quarantine.files_of(old.pk)
    assert quarantine.files_of(fresh.pk)


def test_archiving_is_refused_while_an_alias_needs_the_version(
    acme: Tenant, globex: Tenant, push: Push, client_of: Clients
) -> None:
    push(acme, "support")
    push(acme, "support", 1)
    client, stranger = client_of(acme), client_of(globex)
    path = "/api/v1/adapters/support/versions"
    refused = client.post(f"{path}/1/archive")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_in_use")
    assert client.post(f"{path}/2/archive").json()["state"] == "archived"
    again = client.post(f"{path}/2/archive")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "version_not_ready")
    assert client.post(f"{path}/3/archive").status_code == 404
    assert client.post(f"{path}/{10**30}/archive").status_code == 404
    assert stranger.post(f"{path}/1/archive").status_code == 404


def test_only_an_unused_adapter_can_be_deleted(acme: Tenant, globex: Tenant, push: Push, client_of: Clients) -> None:
    push(acme, "support")
    client = client_of(acme)
    assert client.post("/api/v1/adapters", {"name": "empty"}, format="json").status_code == 201
    assert client_of(globex).delete("/api/v1/adapters/empty").status_code == 404
    assert client.delete("/api/v1/adapters/support").status_code == 409
    assert client.delete("/api/v1/adapters/empty").status_code == 204
    assert [row["name"] for row in client.get("/api/v1/adapters").json()["results"]] == ["support"]
    with pytest.raises(AdapterInUse):
        delete_adapter(Adapter.objects.get(), actor=SYSTEM)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "Upper"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a@v1"}, "name"),
        ({"name": "x" * 64}, "name"),
        ({"name": "x", "base_model": "no-such"}, "base_model"),
        ({"name": "x", "tenant": "globex"}, "tenant"),
    ],
)
def test_a_wrong_field_is_named(
    acme: Tenant, base: BaseModel, client_of: Clients, body: dict[str, object], param: str
) -> None:
    answer = client_of(acme).post("/api/v1/adapters", body, format="json")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_names_are_a_tenants_own_but_never_a_base_models(acme: Tenant, globex: Tenant, base: BaseModel) -> None:
    create_adapter(acme, "support", actor=SYSTEM)
    create_adapter(globex, "support", actor=SYSTEM)
    for name in ("support", "tiny"):
        with pytest.raises(NameTaken):
            create_adapter(acme, name, actor=SYSTEM)


def test_a_base_model_is_registered_once_and_guards_its_adapters(
    acme: Tenant, tiny_base_model: Path, django_assert_num_queries: Commits
) -> None:
    base = register_base_model(str(tiny_base_model))
    assert (base.name, base.is_default) == (tiny_base_model.name, True)
    assert register_base_model(str(tiny_base_model)) == base
    assert Event.objects.for_tenant(None).filter(action="base-model:registered").count() == 1
    other = register_base_model(str(tiny_base_model), "other")
    assert BaseModel.objects.get(is_default=True) == other
    create_adapter(acme, "support", base_model=base, actor=SYSTEM)
    BaseModel.objects.filter(pk=base.pk).update(spec={**base.spec, "hidden_size": 1})
    with pytest.raises(BaseModelChanged):
        register_base_model(str(tiny_base_model))


def test_a_description_of_an_earlier_release_is_completed(acme: Tenant, tiny_base_model: Path) -> None:
    base = register_base_model(str(tiny_base_model))
    create_adapter(acme, "support", base_model=base, actor=SYSTEM)
    older = {name: value for name, value in base.spec.items() if name != "vectors"}
    older["linears"] = dict(list(base.spec["linears"].items())[1:])  # GPT-2's were none
    BaseModel.objects.filter(pk=base.pk).update(spec=older)
    assert register_base_model(str(tiny_base_model)).spec == base.spec


@pytest.fixture
def no_engine(settings: Any, tmp_path: Path) -> None:
    """There is none, though other tests of this process may have started one."""
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"engine_url": f"unix:{tmp_path}/no-engine.sock"})


@pytest.mark.usefixtures("no_engine")
def test_push_adapter_validates_here_and_says_what_came_of_it(
    acme: Tenant, base: BaseModel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("push_adapter", "acme", "support", str(folder), "--wait")
    first, note = capsys.readouterr().out.splitlines()
    assert (first, note[:12]) == ("acme/support@v1 ready", "[not-tried] ")  # there is no engine here
    call_command("push_adapter", "acme", "support", str(folder))
    assert capsys.readouterr().out == "acme/support@v2 uploaded\n"
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CommandError, match=r"\[.+\] "):
        call_command("push_adapter", "acme", "support", str(folder), "--wait")
    assert capsys.readouterr().out == "acme/support@v3 rejected\n"
    for arguments, reason in (
        (["no-such", "support", str(folder)], "no tenant"),
        (["acme", "Not A Name", str(folder)], "Lower-case"),
        (["acme", "support", str(folder / "absent")], "No such file"),
    ):
        with pytest.raises(CommandError, match=reason):
            call_command("push_adapter", *arguments)


@pytest.mark.usefixtures("no_engine")
def test_push_adapter_finds_the_adapter_in_a_trainer_s_folder(
    acme: Tenant, base: BaseModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    checkpoints = [Path(shutil.copytree(folder, out / f"checkpoint-{step}")) for step in (100, 200)]
    with pytest.raises(CommandError, match=r"several-adapters.*checkpoint-100, checkpoint-200"):
        call_command("push_adapter", "acme", "support", str(out), "--wait")
    shutil.copytree(folder, out, dirs_exist_ok=True)
    (checkpoints[0] / "optimizer.pt").write_bytes(b"")
    call_command("push_adapter", "acme", "support", str(out), "--wait")
    first, note, untried = capsys.readouterr().out.splitlines()
    assert (first, untried[:12]) == ("acme/support@v1 ready", "[not-tried] ")
    assert note.startswith("[left-out] 5 files are not the adapter's")
    assert "checkpoint-100/optimizer.pt" in note
    (out / "adapter_model.safetensors").rename(out / "adapters.safetensors")
    shutil.rmtree(checkpoints[0])
    shutil.rmtree(checkpoints[1])
    with pytest.raises(CommandError, match="mlx-format"):
        call_command("push_adapter", "acme", "support", str(out))


def test_register_base_model_from_a_shell(
    db: None, tiny_base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("register_base_model", str(tiny_base_model), "--name", "demo")
    assert capsys.readouterr().out == "demo\n"
    with pytest.raises(CommandError):
        call_command("register_base_model", str(tmp_path))


def test_an_upload_whose_message_was_lost_is_asked_for_again_within_seconds(
    acme: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(validation, "enqueue_validation", asked.append)
    version = push(acme, "support", validate=False)
    Version.objects.filter(pk=version.pk).update(changed_at=timezone.now() - timedelta(seconds=20))
    monkeypatch.setattr(validation, "idle", lambda _: False)
    assert revalidate_stale() == 0  # its message may be among those that wait
    monkeypatch.setattr(validation, "idle", lambda _: True)
    assert (revalidate_stale(), asked) == (1, [version.pk])
    assert revalidate_stale() == 0


def test_a_worker_that_dies_leaves_its_version_to_the_next_at_once(
    acme: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(validation, "enqueue_validation", asked.append)
    monkeypatch.setattr(validation, "idle", lambda _: True)
    version = push(acme, "support", validate=False)
    Version.objects.filter(pk=version.pk).update(
        state=State.VALIDATING, attempts=1, changed_at=timezone.now() - timedelta(seconds=20)
    )
    with monkeypatch.context() as patch:
        patch.setattr(validation, "attended", lambda _: True)
        patch.setattr(validation, "deserted", lambda _: [])
        assert revalidate_stale() == 0
        assert validate_version(version.pk) is None  # delivered once more while a worker is at it
    assert Version.objects.get(pk=version.pk).attempts == 1
    assert (revalidate_stale(), asked) == (1, [version.pk])
    assert validate_version(version.pk) == State.READY


def test_a_deserted_version_is_asked_for_once_in_a_while_and_stays_claimable(
    acme: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(validation, "enqueue_validation", asked.append)
    version = push(acme, "support", validate=False)

    def silent_for(seconds: int) -> None:
        since = timezone.now() - timedelta(seconds=seconds)
        Version.objects.filter(pk=version.pk).update(state=State.VALIDATING, attempts=1, changed_at=since)

    silent_for(20)
    monkeypatch.setattr(validation, "idle", lambda _: False)
    assert revalidate_stale() == 0  # while messages wait
    monkeypatch.setattr(validation, "idle", lambda _: True)
    assert [revalidate_stale() for _ in range(3)] == [1, 0, 0]
    silent_for(90)
    monkeypatch.setattr(validation, "idle", lambda _: False)
    assert [revalidate_stale() for _ in range(3)] == [1, 0, 0]
    assert asked == [version.pk] * 2
    assert validate_version(version.pk) == State.READY


def test_a_version_whose_worker_hangs_is_asked_for_while_no_message_waits(
    acme: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = push(acme, "support", validate=False)
    since = timezone.now() - STALE - timedelta(seconds=1)
    Version.objects.filter(pk=version.pk).update(state=State.VALIDATING, attempts=1, changed_at=since)
    monkeypatch.setattr(validation, "deserted", lambda _: [])
    monkeypatch.setattr(validation, "attended", lambda _: True)
    monkeypatch.setattr(validation, "enqueue_validation", lambda _: None)
    monkeypatch.setattr(validation, "idle", lambda _: False)
    assert revalidate_stale() == 0
    monkeypatch.setattr(validation, "idle", lambda _: True)
    assert revalidate_stale() == 1
    assert validate_version(version.pk) == State.READY


def test_a_clock_that_was_set_back_hides_no_upload(acme: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    version = push(acme, "support", validate=False)
    Version.objects.filter(pk=version.pk).update(changed_at=timezone.now() + timedelta(days=1))
    monkeypatch.setattr(validation, "enqueue_validation", lambda _: None)
    assert revalidate_stale() == 1
