"""Merges as a tenant asks for them over the API, and as a worker does them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rest_framework.test import APIClient

from adapters.store import Store
from audit.models import Event
from audit.services import SYSTEM
from merges import models
from merges.models import Merge, State
from merges.services import cancel_merge, expire_merges, leases, resume_merges, run_merge, tidy_merges
from merges.services import requests as asked
from registry.errors import SignatureRequired
from registry.models import BaseModel, Version
from registry.models import State as VersionState
from registry.services import ensure_adapter, validate_version
from tenants.models import Tenant

Clients = Callable[..., APIClient]
Pushes = Callable[..., Version]
Files = Callable[[], set[str]]
Run = Callable[..., State | None]

ONE = {"adapter": "support", "version": 1}
INTO_BASE = {"kind": "checkpoint", "sources": [ONE]}
BOTH = [{**ONE, "weight": 0.7}, {"adapter": "query", "version": 1, "weight": 0.3}]
COMBINE = {"kind": "version", "adapter": "mixed", "sources": BOTH, "method": "linear"}


def ask(client: APIClient, body: dict[str, Any], status: int = 202) -> Any:
    answer = client.post("/api/v1/merges", body, format="json")
    assert answer.status_code == status, answer.content
    return answer.json()


@pytest.fixture
def run(django_capture_on_commit_callbacks: Any) -> Run:
    """Works on a merge as a worker does, where every transaction is committed."""

    def work(told: Any, **named: Any) -> State | None:
        with django_capture_on_commit_callbacks(execute=True):
            return run_merge(told["id"], **named)

    return work


def show(client: APIClient, told: Any) -> Any:
    return client.get(f"/api/v1/merges/{told['id']}").json()


@pytest.fixture
def two(acme: Tenant, push: Pushes) -> list[Version]:
    """support@v1 and query@v1 of acme, which also has the name `mixed`."""
    made = [push(acme, "support"), push(acme, "query", 1)]
    ensure_adapter(acme, "mixed", actor=SYSTEM)
    return made


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


def test_strangers_and_keys_for_other_adapters_find_nothing_to_merge(
    two: list[Version], acme: Tenant, globex: Tenant, client_of: Clients
) -> None:
    told = ask(client_of(acme), COMBINE)
    stranger = client_of(globex)
    confined = client_of(acme, "adapters:read", "adapters:write", adapters=("support",))
    for body in (INTO_BASE, COMBINE):
        ask(stranger, body, 404)
    ask(confined, COMBINE, 404)
    for client in (stranger, confined):
        assert client.get("/api/v1/merges").json()["results"] == []
        for method, path in (("get", ""), ("delete", ""), ("post", "/cancel"), ("get", "/files/config.json")):
            assert getattr(client, method)(f"/api/v1/merges/{told['id']}{path}").status_code == 404
    own = ask(confined, INTO_BASE)
    assert [row["id"] for row in confined.get("/api/v1/merges").json()["results"]] == [own["id"]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"kind": "checkpoint", "sources": BOTH}, "sources"),
        ({"kind": "checkpoint", "sources": [{**ONE, "weight": 2}]}, "sources"),
        ({**INTO_BASE, "method": "linear"}, "method"),
        ({**COMBINE, "sources": BOTH[:1]}, "sources"),
        ({**COMBINE, "sources": [{**ONE, "weight": 0}, ONE]}, "sources.0.weight"),
        ({**COMBINE, "method": "magic"}, "method"),
        ({**COMBINE, "method": "ties"}, "density"),
        ({**COMBINE, "method": "dare_linear", "density": 0}, "density"),
        ({**COMBINE, "rank": 8}, "rank"),
        ({**COMBINE, "shell": "rm"}, "shell"),
        ({"kind": "version", "sources": BOTH, "method": "cat"}, "adapter"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(
    body: dict[str, Any], param: str, two: list[Version], acme: Tenant, client_of: Clients
) -> None:
    assert ask(client_of(acme), body, 400)["error"]["param"] == param
    assert not Merge.objects.exists()


def test_only_ready_versions_of_one_base_model_are_merged(
    two: list[Version], acme: Tenant, client_of: Clients, push: Pushes, base: BaseModel
) -> None:
    client = client_of(acme)
    push(acme, "support", 1, validate=False)
    unready = {"adapter": "support", "version": 2}
    assert ask(client, {**INTO_BASE, "sources": [unready]}, 409)["error"]["code"] == "version_not_ready"
    other = BaseModel.objects.create(name="other", source=base.source, spec=base.spec)
    foreign = ensure_adapter(acme, "foreign", actor=SYSTEM)
    type(foreign).objects.filter(pk=foreign.pk).update(base_model=other)
    assert ask(client, {**COMBINE, "adapter": "foreign"}, 400)["error"]["code"] == "merge_malformed"


def test_who_takes_only_signed_versions_may_merge_into_the_base_but_not_into_a_version(
    two: list[Version], acme: Tenant, client_of: Clients
) -> None:
    Tenant.objects.filter(pk=acme.pk).update(requires_signature=True)
    client = client_of(acme)
    assert ask(client, COMBINE, 400)["error"]["code"] == SignatureRequired.code
    ask(client, INTO_BASE)


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


def test_one_worker_works_on_a_merge_and_another_takes_over_only_when_it_is_gone(
    two: list[Version], acme: Tenant, client_of: Clients, desert: Callable[..., None], run: Run
) -> None:
    told = ask(client_of(acme), INTO_BASE)
    first = leases.claim(told["id"])
    assert first is not None
    assert run(told) is None
    assert resume_merges() == 0
    desert(first.merge.pk)
    assert resume_merges() == 1
    second = leases.claim(told["id"])
    assert second is not None
    with pytest.raises(leases.Lost):
        leases.keep(first, stage="merging", done=1, total=2)
    leases.keep(second, stage="merging", done=1, total=2)


def body_of(answer: Any) -> bytes:
    return b"".join(answer.streaming_content if not answer.is_async else answer)


def test_files_are_downloaded_whole_and_in_ranges_until_they_expire(
    two: list[Version],
    acme: Tenant,
    client_of: Clients,
    home: Path,
    files_of: Files,
    django_capture_on_commit_callbacks: Any,
    run: Run,
) -> None:
    client = client_of(acme)
    told = ask(client, INTO_BASE)
    run(told)
    (file,) = (file for file in show(client, told)["files"] if file["name"] == "tokenizer.json")
    content = (home / "merges" / told["id"] / "result" / "tokenizer.json").read_bytes()
    whole = client.get(file["url"])
    assert (whole.status_code, whole.headers["Content-Length"]) == (200, str(file["size"]))
    assert (whole.headers["Accept-Ranges"], whole.headers["ETag"]) == ("bytes", f'"{file["sha256"]}"')
    assert body_of(whole) == content
    size = len(content)
    etag = whole.headers["ETag"]
    for asked_for, only_if, status, part in (
        ("bytes=0-9", "", 206, content[:10]),
        ("bytes=10-", "", 206, content[10:]),
        ("bytes=-7", etag, 206, content[-7:]),
        (f"bytes=5-{size + 100}", "", 206, content[5:]),
        ("bytes=5-9", '"another"', 200, content),
        ("bytes=0-1,4-5", "", 200, content),
        ("lines=1-2", "", 200, content),
    ):
        answer = client.get(file["url"], headers={"Range": asked_for} | ({"If-Range": only_if} if only_if else {}))
        assert (answer.status_code, body_of(answer)) == (status, part), asked_for
    assert client.get(file["url"], headers={"Range": "bytes=0-9"}).headers["Content-Range"] == f"bytes 0-9/{size}"
    beyond = client.get(file["url"], headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    for name in ("../result.plan", "other.json", "..", "%2e%2e%2fsources"):
        assert client.get(f"/api/v1/merges/{told['id']}/files/{name}").status_code == 404
    assert Event.objects.filter(action="merge:downloaded").count() == 6  # each start at the first byte
    head = client.head(file["url"])
    assert (head.headers["Content-Length"], head.content) == (str(size), b"")
    Merge.objects.update(expires_at="2020-01-01T00:00:00Z")
    assert client.get(file["url"]).status_code == 404
    with django_capture_on_commit_callbacks(execute=True):
        assert expire_merges() == 1
    assert files_of() == set()
    assert (show(client, told)["state"], show(client, told)["files"]) == ("expired", [])
    assert client.delete(f"/api/v1/merges/{told['id']}").status_code == 409


def test_a_merged_model_can_be_deleted_before_its_time(
    two: list[Version],
    acme: Tenant,
    client_of: Clients,
    files_of: Files,
    django_capture_on_commit_callbacks: Any,
    run: Run,
) -> None:
    client = client_of(acme)
    told = ask(client, INTO_BASE)
    run(told)
    with django_capture_on_commit_callbacks(execute=True):
        assert client.delete(f"/api/v1/merges/{told['id']}").status_code == 204
    assert files_of() == set()


def test_a_tenant_has_so_many_merges_under_way_and_keeps_so_many_bytes(
    two: list[Version],
    acme: Tenant,
    globex: Tenant,
    client_of: Clients,
    monkeypatch: pytest.MonkeyPatch,
    push: Pushes,
    run: Run,
) -> None:
    client = client_of(acme)
    told = [ask(client, INTO_BASE) for _ in range(models.MOST_PENDING)]
    assert ask(client, INTO_BASE, 409)["error"]["code"] == "too_many_merges"
    push(globex, "support")
    ask(client_of(globex), INTO_BASE)  # another tenant's are not counted
    run(told[0])
    size = show(client, told[0])["size"]
    monkeypatch.setattr(leases, "MOST_BYTES", size + 1)
    assert run(told[1]) == State.FAILED
    assert show(client, told[1])["finding"]["rule"] == "no-room"
    monkeypatch.setattr(asked, "MOST_BYTES", size)
    assert ask(client, INTO_BASE, 413)["error"]["code"] == "merges_too_large"


def test_a_full_disk_fails_a_merge_before_it_writes(
    two: list[Version], acme: Tenant, client_of: Clients, monkeypatch: pytest.MonkeyPatch, files_of: Files, run: Run
) -> None:
    told = ask(client_of(acme), INTO_BASE)
    monkeypatch.setattr("merges.folders.free", lambda: 0)
    assert run(told) == State.FAILED
    assert files_of() == set()


def test_what_no_merge_knows_of_is_swept_away(
    two: list[Version], acme: Tenant, client_of: Clients, home: Path, files_of: Files, run: Run
) -> None:
    told = ask(client_of(acme), INTO_BASE)
    run(told)
    before = files_of()
    (home / "merges" / "00000000-0000-0000-0000-000000000000").mkdir()
    assert tidy_merges() == 1
    assert files_of() == before
