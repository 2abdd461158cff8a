"""Merges as a worker does them: what becomes of them, and of those that fail, end early or change hands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch

from adapters.store import Store
from audit.models import Event
from audit.services import SYSTEM
from merges import folders
from merges.models import Merge, State
from merges.services import cancel_merge, leases, resume_merges, running
from registry.models import BaseModel, Version
from registry.models import State as VersionState
from registry.services import ensure_adapter, validate_version
from tenants.models import Tenant
from tests.merges.asking import BOTH, COMBINE, INTO_BASE, Clients, Files, Pushes, Run, ask, show


def test_a_version_is_merged_into_its_base_verified_and_kept_for_download(
    two: list[Version], acme: Tenant, client_of: Clients, tiny_base_model: Path, home: Path, run: Run
) -> None:
    client = client_of(acme)
    told = ask(client, INTO_BASE)
    assert (told["state"], told["progress"], told["files"]) == ("queued", 0, [])
    assert run(told) == State.READY
    told = show(client, told)
    assert (told["state"], told["progress"], told["finding"]) == ("ready", 1, {})
    assert told["agreement"]["deviation"] < told["agreement"]["tolerance"] == 1e-4 < told["agreement"]["effect"]
    names = {file["name"] for file in told["files"]}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json", "provenance.json"} <= names
    assert sum(name.endswith(".safetensors") for name in names) > 5
    provenance = json.loads((home / "merges" / told["id"] / "result" / "provenance.json").read_text())
    assert provenance["adapter"] == {"name": "acme/support@v1", "digest": two[0].digest}
    assert provenance["verified"] == told["agreement"]
    assert str(tiny_base_model) not in json.dumps(provenance)
    actions = [event.action for event in Event.objects.for_tenant(acme).filter(target=f"merge {told['id']}")]
    assert actions == ["merge:ready", "merge:requested"]


def test_versions_are_combined_into_a_new_one_that_is_validated_like_any_upload(
    two: list[Version],
    acme: Tenant,
    client_of: Clients,
    settings: Any,
    tmp_path: Path,
    files_of: Files,
    run: Run,
    django_capture_on_commit_callbacks: Any,
) -> None:
    client = client_of(acme)
    told = ask(client, {**COMBINE, "method": "ties", "density": 0.5})
    assert run(told) == State.READY
    assert show(client, told)["result"] == {"adapter": "mixed", "version": "v1", "state": "uploaded"}
    made = Version.objects.get(adapter__name="mixed")
    assert made.uploader == Merge.objects.get().requester == told["requester"] != "system:lorayard"
    with django_capture_on_commit_callbacks(execute=True):
        assert validate_version(made.pk) == VersionState.READY
    made.refresh_from_db()
    assert show(client, told)["result"]["state"] == "ready"
    assert made.summary["rank_max"] == 4
    Store(settings.LORAYARD.store_url).fetch(made.digest, tmp_path / "out")
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "adapter_model.safetensors", framework="pt") as file:
        provenance = json.loads(file.metadata()["lorayard.merge"])
        assert all(bool(torch.isfinite(file.get_tensor(name)).all()) for name in file.keys())  # noqa: SIM118
    assert [source["digest"] for source in provenance["sources"]] == [version.digest for version in two]
    assert provenance["method"] == "ties"
    assert files_of() == set()


def test_what_cannot_be_merged_exactly_fails_with_its_reason_and_no_files(
    acme: Tenant,
    push: Pushes,
    make_adapter: Callable[..., Path],
    base: BaseModel,
    client_of: Clients,
    tmp_path: Path,
    files_of: Files,
    run: Run,
) -> None:
    client = client_of(acme)
    folder = make_adapter(tmp_path / "dora", Path(base.source), rank=4, use_dora=True)
    push(acme, "support", folder)
    push(acme, "query", make_adapter(tmp_path / "biased", Path(base.source), rank=4, lora_bias=True))
    ensure_adapter(acme, "mixed", actor=SYSTEM)
    biased = {**INTO_BASE, "sources": [BOTH[1] | {"weight": 1}]}
    for body, rule in ((COMBINE, "combines-dora"), (biased, "needs-bias")):
        told = ask(client, body)
        assert run(told) == State.FAILED
        told = show(client, told)
        assert (told["state"], told["finding"]["rule"]) == ("failed", rule)
        assert told["finding"]["message"]
    assert files_of() == set()
    assert run(ask(client, INTO_BASE)) == State.READY  # DoRA does merge into the base


def test_a_source_whose_files_are_gone_fails_the_merge(
    two: list[Version], acme: Tenant, client_of: Clients, settings: Any, files_of: Files, run: Run
) -> None:
    told = ask(client_of(acme), INTO_BASE)
    Store(settings.LORAYARD.store_url).delete(two[0].digest)
    assert run(told) == State.FAILED
    assert show(client_of(acme), told)["finding"]["rule"] == "source-gone"
    assert files_of() == set()


def test_a_base_model_that_is_no_longer_there_fails_the_merge(
    two: list[Version], acme: Tenant, client_of: Clients, base: BaseModel, run: Run, files_of: Files
) -> None:
    told = ask(client_of(acme), INTO_BASE)
    BaseModel.objects.filter(pk=base.pk).update(source="/nowhere/at/all")
    assert run(told) == State.FAILED
    finding = show(client_of(acme), told)["finding"]
    assert finding["rule"] == "base-unusable"
    assert "nowhere" not in str(finding)
    assert files_of() == set()


def test_a_merge_is_cancelled_while_it_waits_and_while_it_runs(
    two: list[Version],
    acme: Tenant,
    client_of: Clients,
    files_of: Files,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
    run: Run,
) -> None:
    client = client_of(acme)
    waiting, running_one = ask(client, COMBINE), ask(client, INTO_BASE)
    assert client.post(f"/api/v1/merges/{waiting['id']}/cancel").json()["state"] == "cancelled"
    assert run(waiting) is None
    keep, stages = leases.keep, []

    def cancelled_at_the_check(lease: leases.Lease, **told: Any) -> None:
        stages.append(told["stage"])
        if told["stage"] == "verifying":
            assert files_of()
            with django_capture_on_commit_callbacks(execute=True):
                cancel_merge(lease.merge, actor=SYSTEM)
        keep(lease, **told)

    monkeypatch.setattr(leases, "keep", cancelled_at_the_check)
    assert run(running_one) is None
    assert stages[0] == "merging"
    assert stages[-1] == "verifying"
    assert files_of() == set()
    assert show(client, running_one)["state"] == "cancelled"
    again = client.post(f"/api/v1/merges/{waiting['id']}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "merge_settled")


def test_progress_rises_and_a_shift_that_ends_is_followed_by_another(
    two: list[Version], acme: Tenant, client_of: Clients, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    client, shown, keep = client_of(acme), [], leases.keep
    told = ask(client, INTO_BASE)

    def watched(lease: leases.Lease, **told: Any) -> None:
        keep(lease, **told)
        row = Merge.objects.get(pk=lease.merge.pk)
        shown.append((row.stage, row.progress))

    monkeypatch.setattr(leases, "keep", watched)
    assert run(told, seconds=-1) is None
    assert show(client, told)["state"] == "queued"
    assert len(shown) == 1
    assert run(told) == State.READY
    progress = [part for _, part in shown[1:]]
    assert progress == sorted(progress)
    assert progress[-1] > 0.9
    assert list(dict.fromkeys(stage for stage, _ in shown[1:])) == ["merging", "verifying", "sealing"]


def test_a_merge_makes_room_for_others_after_each_file_and_ends_all_the_same(
    two: list[Version], acme: Tenant, client_of: Clients, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(running, "SHORT", 0.0)
    told = ask(client_of(acme), INTO_BASE)
    for shift in range(1, 4):
        assert run(told, others_wait=lambda: True) is None
        assert len(list(folders.result(UUID(told["id"])).glob("*.safetensors"))) == shift
    assert run(told) == State.READY


def test_one_worker_works_on_a_merge_and_another_takes_over_only_when_it_is_gone(
    two: list[Version],
    acme: Tenant,
    client_of: Clients,
    desert: Callable[..., None],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = ask(client_of(acme), INTO_BASE)
    first = leases.claim(told["id"])
    assert first is not None
    monkeypatch.setattr(leases, "attended", lambda _: True)
    assert run(told) is None
    monkeypatch.setattr(running, "idle", lambda _: True)
    assert resume_merges() == 0
    desert(first.merge.pk)
    assert resume_merges() == 1
    monkeypatch.setattr(running, "idle", lambda _: False)
    assert resume_merges() == 0  # a message that waits will do
    second = leases.claim(told["id"])
    assert second is not None
    with pytest.raises(leases.Lost):
        leases.keep(first, stage="merging", done=1, total=2)
    leases.keep(second, stage="merging", done=1, total=2)


def test_a_full_disk_fails_a_merge_before_it_writes(
    two: list[Version], acme: Tenant, client_of: Clients, monkeypatch: pytest.MonkeyPatch, files_of: Files, run: Run
) -> None:
    told = ask(client_of(acme), INTO_BASE)
    monkeypatch.setattr("merges.folders.free", lambda: 0)
    assert run(told) == State.FAILED
    assert files_of() == set()


def test_what_another_s_merge_has_reserved_and_not_written_is_taken(
    two: list[Version],
    acme: Tenant,
    globex: Tenant,
    client_of: Clients,
    push: Pushes,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    push(globex, "support")
    ours, theirs, later = (ask(client_of(tenant), INTO_BASE) for tenant in (acme, globex, globex))
    monkeypatch.setattr(running, "SHORT", 0.0)
    assert run(ours, others_wait=lambda: True) is None  # it has written one file of many
    size = Merge.objects.get(pk=ours["id"]).size
    rest = size - folders.written(UUID(ours["id"]))
    assert 0 < rest < size
    needed = rest + size
    monkeypatch.setattr("merges.folders.free", lambda: needed - 1)
    assert run(theirs) == State.FAILED
    assert show(client_of(globex), theirs)["finding"]["rule"] == "no-room"
    monkeypatch.setattr("merges.folders.free", lambda: needed)
    assert run(later) == State.READY
    assert run(ours) == State.READY
