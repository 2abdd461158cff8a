"""Uploads: what PEFT writes becomes a version; everything else is refused with its reason and leaves nothing."""

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from django.core.files.base import ContentFile
from rest_framework.test import APIClient
from safetensors.torch import load_file, save_file

from adapters.errors import Missing
from adapters.limits import DEFAULT, Limits
from adapters.manifest import Manifest
from adapters.store import Store
from audit.models import Event
from audit.services import SYSTEM
from audit.verification import verify
from registry import quarantine
from registry.errors import UploadTooLarge
from registry.models import Adapter, Alias, BaseModel, State, Version
from registry.services import ensure_adapter, upload_version, validate_version
from tenants.models import Tenant

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Commits = Callable[..., AbstractContextManager[Any]]
Clients = Callable[..., APIClient]
LeftBehind = Callable[[], set[str]]


def said(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is said of the files, whether or not there is an engine to try them."""
    return [finding for finding in findings if finding["rule"] != "not-tried"]


def zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, prefix + path.name)
    return target


def tarred(folder: Path, target: Path, prefix: str = "") -> Path:
    with tarfile.open(target, "w:gz") as archive:
        for name in (CONFIG, WEIGHTS):
            archive.add(folder / name, prefix + name)
    return target


def settle(version_id: str, commits: Commits) -> Version:
    with commits(execute=True):
        validate_version(Version.objects.get(pk=version_id).pk)
    return Version.objects.get(pk=version_id)


def test_the_two_files_that_peft_wrote_become_a_ready_version(
    acme: Tenant,
    globex: Tenant,
    base: BaseModel,
    folder: Path,
    client_of: Clients,
    post: Callable[..., Any],
    django_capture_on_commit_callbacks: Commits,
    settings: Any,
    tmp_path: Path,
) -> None:
    client = client_of(acme)
    answer = post(client, "support", folder / CONFIG, folder / WEIGHTS)
    assert answer.status_code == 202
    assert answer.json()["state"] == "uploaded"
    assert answer.headers["Location"] == "/api/v1/adapters/support/versions/1"
    settle(answer.json()["id"], django_capture_on_commit_callbacks)
    shown = client.get(answer.headers["Location"]).json()
    (folder / "README.md").unlink()
    assert shown["digest"] == Manifest.of(folder).digest
    assert (shown["state"], shown["version"], said(shown["findings"])) == ("ready", "v1", [])
    assert shown["summary"]["rank_max"] == 4
    assert client.get("/api/v1/adapters/support").json()["aliases"] == {"stable": 1}
    Store(settings.LORAYARD.store_url).fetch(shown["digest"], tmp_path / "fetched")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "fetched" / name).read_bytes() == (folder / name).read_bytes()
    assert not quarantine.folder(Version.objects.get().pk).exists()
    actions = [event.action for event in Event.objects.for_tenant(acme).order_by("number")]
    assert actions == [
        "tenant:created",
        "key:issued",
        "adapter:created",
        "adapter:version:uploaded",
        "adapter:version:validating",
        "adapter:version:ready",
        "adapter:alias:created",
    ]
    assert verify() == []
    assert client_of(globex).get(answer.headers["Location"]).status_code == 404


@pytest.mark.parametrize("archive", ["a.zip", "a.tar.gz", "a.tgz"])
def test_an_archive_gives_the_same_digest_as_its_files(
    acme: Tenant,
    folder: Path,
    push: Callable[..., Version],
    client_of: Clients,
    post: Callable[..., Any],
    tmp_path: Path,
    django_capture_on_commit_callbacks: Commits,
    archive: str,
) -> None:
    direct = push(acme, "support")
    pack = zipped if archive.endswith("zip") else tarred
    answer = post(client_of(acme), "support", pack(folder, tmp_path / archive))
    version = settle(answer.json()["id"], django_capture_on_commit_callbacks)
    assert (version.state, version.number, version.digest) == (State.READY, 2, direct.digest)
    assert Alias.objects.get().version == direct


def a_pickle(folder: Path, work: Path) -> list[Path]:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weights": [1.0]}))
    return [folder / CONFIG, folder / "adapter_model.bin"]


def a_pickle_under_the_right_name(folder: Path, work: Path) -> list[Path]:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"weights": [1.0] * 1000}))
    return [folder / CONFIG, folder / WEIGHTS]


def another_base_model(folder: Path, work: Path) -> list[Path]:
    tensors = load_file(folder / WEIGHTS)
    wider = {
        name: torch.zeros(tensor.shape[0], 96) if name.endswith("lora_A.weight") else tensor
        for name, tensor in tensors.items()
    }
    save_file(wider, folder / WEIGHTS)
    return [folder / CONFIG, folder / WEIGHTS]


def unmatched_modules(folder: Path, work: Path) -> list[Path]:
    config = json.loads((folder / CONFIG).read_text())
    config["target_modules"] = ["query_key_value"]
    (folder / CONFIG).write_text(json.dumps(config))
    tensors = load_file(folder / WEIGHTS)
    save_file({name.replace("q_proj", "query_key_value"): t for name, t in tensors.items()}, folder / WEIGHTS)
    return [folder / CONFIG, folder / WEIGHTS]


def truncated(folder: Path, work: Path) -> list[Path]:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    return [folder / CONFIG, folder / WEIGHTS]


def a_nan(folder: Path, work: Path) -> list[Path]:
    tensors = load_file(folder / WEIGHTS)
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    return [folder / CONFIG, folder / WEIGHTS]


def an_archive_that_climbs(folder: Path, work: Path) -> list[Path]:
    return [zipped(folder, work / "a.zip", prefix="../../")]


def a_tar_that_climbs(folder: Path, work: Path) -> list[Path]:
    return [tarred(folder, work / "a.tar.gz", prefix="../../")]


def an_archive_that_is_none(folder: Path, work: Path) -> list[Path]:
    (work / "a.zip").write_bytes(b"PK\x03\x04 not really")
    return [work / "a.zip"]


def one_file_missing(folder: Path, work: Path) -> list[Path]:
    return [folder / CONFIG]


def a_config_that_is_no_json(folder: Path, work: Path) -> list[Path]:
    (folder / CONFIG).write_text("{")
    return [folder / CONFIG, folder / WEIGHTS]


def qalora(folder: Path, work: Path) -> list[Path]:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "use_qalora": True}))
    return [folder / CONFIG, folder / WEIGHTS]


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (a_pickle, "pickle"),
        (a_pickle_under_the_right_name, "pickle"),
        (another_base_model, "wrong-base-model"),
        (unmatched_modules, "unmatched-module"),
        (truncated, "truncated"),
        (a_nan, "non-finite"),
        (an_archive_that_climbs, "path"),
        (a_tar_that_climbs, "path"),
        (an_archive_that_is_none, "malformed-archive"),
        (one_file_missing, "missing-file"),
        (a_config_that_is_no_json, "malformed-json"),
        (qalora, "unsupported-qalora"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_bad_upload_is_rejected_with_its_reason_and_leaves_nothing(
    acme: Tenant,
    globex: Tenant,
    base: BaseModel,
    folder: Path,
    tmp_path: Path,
    client_of: Clients,
    post: Callable[..., Any],
    left_behind: LeftBehind,
    django_capture_on_commit_callbacks: Commits,
    spoil: Callable[[Path, Path], list[Path]],
    rule: str,
) -> None:
    client = client_of(acme)
    answer = post(client, "support", *spoil(folder, tmp_path))
    assert answer.status_code == 202
    settle(answer.json()["id"], django_capture_on_commit_callbacks)
    shown = client.get(answer.headers["Location"]).json()
    assert (shown["state"], shown["digest"]) == ("rejected", "")
    assert rule in {finding["rule"] for finding in shown["findings"]}
    assert all(finding["message"] for finding in shown["findings"])
    assert not Alias.objects.exists()
    assert left_behind() == set()
    assert not list(tmp_path.parent.glob(WEIGHTS))
    assert client_of(globex).get(answer.headers["Location"]).status_code == 404
    assert Event.objects.for_tenant(acme).filter(action="adapter:version:rejected").count() == 1


def test_what_is_not_the_adapter_s_is_left_out_and_named_in_the_report(
    acme: Tenant,
    base: BaseModel,
    folder: Path,
    tmp_path: Path,
    client_of: Clients,
    post: Callable[..., Any],
    left_behind: LeftBehind,
    django_capture_on_commit_callbacks: Commits,
) -> None:
    client, alone = client_of(acme), post(client_of(acme), "support", folder / CONFIG, folder / WEIGHTS)
    settle(alone.json()["id"], django_capture_on_commit_callbacks)
    for name in ("optimizer.pt", "run.py"):
        (folder / name).write_bytes(pickle.dumps("never opened"))
    for paths in ([*folder.iterdir()], [zipped(folder, tmp_path / "a.zip", prefix="out/checkpoint-5/")]):
        answer = post(client, "support", *paths)
        settle(answer.json()["id"], django_capture_on_commit_callbacks)
        shown = client.get(answer.headers["Location"]).json()
        assert (shown["state"], shown["digest"]) == ("ready", client.get(alone.headers["Location"]).json()["digest"])
        (note,) = said(shown["findings"])
        assert (note["rule"], note["severity"], note["count"]) == ("left-out", "note", 2)
        assert "optimizer.pt" in note["message"]
        assert "run.py" in note["message"]
    assert not any(name.startswith("quarantine") for name in left_behind())
    assert not any(name.endswith((".pt", ".py", ".zip")) for name in left_behind())


def test_another_base_model_of_the_same_shapes_is_a_warning_with_both_names(
    acme: Tenant, push: Callable[..., Version], folder: Path, base: BaseModel
) -> None:
    config = json.loads((folder / CONFIG).read_text())
    for name, warned in (("Acme/Tiny", False), ("unsloth/tiny-bnb-4bit", False), (None, False), ("acme/huge", True)):
        (folder / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": name}))
        version = push(acme, "support", folder)
        assert version.state == State.READY
        told = [(f["rule"], f["severity"], f["expected"], f["found"]) for f in said(version.findings)]
        assert told == ([("other-base-model", "warning", "tiny", "acme/huge")] if warned else []), name


def test_a_rejected_version_keeps_its_number_and_the_next_ready_one_is_stable(
    acme: Tenant, folder: Path, push: Callable[..., Version]
) -> None:
    truncated(folder, folder)
    assert push(acme, "support", folder).state == State.REJECTED
    good = push(acme, "support", 1)
    assert (good.number, good.state) == (2, State.READY)
    assert Alias.objects.get().version == good


def test_what_is_stored_for_others_survives_a_rejection(
    acme: Tenant, globex: Tenant, folder: Path, push: Callable[..., Version], settings: Any
) -> None:
    good = push(globex, "query")
    a_nan(folder, folder)
    push(acme, "support", folder)
    assert Store(settings.LORAYARD.store_url).has(good.digest)


@pytest.mark.parametrize("limit", [100, 3000])
def test_an_upload_over_the_limit_is_a_413_and_leaves_nothing(
    acme: Tenant,
    base: BaseModel,
    folder: Path,
    client_of: Clients,
    post: Callable[..., Any],
    left_behind: LeftBehind,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    monkeypatch.setattr(quarantine, "DEFAULT", Limits(total=limit))
    for overhead in (quarantine.FORM_OVERHEAD, 0):  # refused while reading, and by the announced length
        monkeypatch.setattr(quarantine, "FORM_OVERHEAD", overhead)
        answer = post(client_of(acme), "support", folder / CONFIG, folder / WEIGHTS)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "upload_too_large"
    assert left_behind() == set()
    assert not Adapter.objects.exists()


def test_the_service_counts_too_whatever_hands_it_the_files(
    acme: Tenant, base: BaseModel, monkeypatch: pytest.MonkeyPatch, left_behind: LeftBehind
) -> None:
    monkeypatch.setattr(quarantine, "DEFAULT", Limits(total=10))
    adapter = ensure_adapter(acme, "support", actor=SYSTEM)
    with pytest.raises(UploadTooLarge):
        upload_version(adapter, [ContentFile(b"12345", CONFIG), ContentFile(b"123456", WEIGHTS)], actor=SYSTEM)
    assert left_behind() == set()


def test_a_malformed_request_is_a_400_and_leaves_nothing(
    acme: Tenant, base: BaseModel, folder: Path, client_of: Clients, left_behind: LeftBehind
) -> None:
    client = client_of(acme)
    path = "/api/v1/adapters/support/versions"
    both = {"a": (folder / CONFIG).open("rb"), "b": (folder / CONFIG).open("rb")}
    stray = {"a": (folder / CONFIG).open("rb"), "notes": "hello"}
    cut = b'--x\r\nContent-Disposition: form-data; name="a"; filename="adapter_config.json"\r\n\r\n{"r": 1'
    answers = {
        "no files": client.post(path, {}, format="multipart"),
        "JSON": client.post(path, {"a": 1}, format="json"),
        "twice": client.post(path, both, format="multipart"),
        "stray": client.post(path, stray, format="multipart"),
        "cut": client.post(path, cut, content_type="multipart/form-data; boundary=x"),
        "no boundary": client.post(path, cut, content_type="multipart/form-data"),
        "name": client.post("/api/v1/adapters/Not%20A%20Name/versions", both, format="multipart"),
    }
    assert client.post("/api/v1/adapters/a%00b/versions", {}, format="multipart").status_code == 404
    statuses = {name: answer.status_code for name, answer in answers.items()}
    assert statuses == dict.fromkeys(answers, 400)
    assert answers["stray"].json()["error"]["param"] == "notes"
    assert answers["name"].json()["error"]["param"] == "name"
    assert left_behind() == set()
    assert not Version.objects.exists()


def test_file_names_cannot_leave_the_quarantine(acme: Tenant, base: BaseModel, home: Path) -> None:
    adapter = ensure_adapter(acme, "support", actor=SYSTEM)
    for name in ("../../etc/x.bin", "/etc/passwd", "..", ".hidden", "a\\..\\b", "x" * 300, "é\n"):
        version = upload_version(adapter, [ContentFile(b"x", name)], actor=SYSTEM, enqueue=False)
        (stored,) = quarantine.files_of(version.pk)
        assert stored.parent == home / "quarantine" / str(version.pk)


def test_without_a_base_model_nothing_can_be_uploaded(
    acme: Tenant, folder: Path, client_of: Clients, post: Callable[..., Any], left_behind: LeftBehind
) -> None:
    answer = post(client_of(acme), "support", folder / CONFIG, folder / WEIGHTS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_base_model")
    assert left_behind() == set()


def test_identical_files_have_one_digest_and_are_stored_once(
    acme: Tenant, globex: Tenant, push: Callable[..., Version], left_behind: LeftBehind
) -> None:
    first = push(acme, "support")
    stored = left_behind()
    second = push(globex, "query")
    assert first.digest == second.digest
    assert left_behind() == stored


def test_rejected_weights_never_reach_the_store(
    acme: Tenant, folder: Path, push: Callable[..., Version], settings: Any
) -> None:
    a_nan(folder, folder)
    (folder / "README.md").unlink(missing_ok=True)
    digest = Manifest.of(folder).digest
    push(acme, "support", folder)
    with pytest.raises(Missing):
        Store(settings.LORAYARD.store_url).manifest(digest)


def test_a_bomb_is_refused(
    acme: Tenant, base: BaseModel, tmp_path: Path, push: Callable[..., Version], left_behind: LeftBehind
) -> None:
    work = tmp_path / "bomb"
    work.mkdir()
    buffer = io.BytesIO(b"\0" * (DEFAULT.ratio * 200_000))
    with zipfile.ZipFile(work / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, "{}")
        archive.writestr(WEIGHTS, buffer.getvalue())
    version = push(acme, "support", work)
    assert version.state == State.REJECTED
    assert left_behind() == set()
    shutil.rmtree(work)
