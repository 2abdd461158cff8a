"""A worker is killed at any point: its merge is resumed, or cleanly failed or cancelled; nothing is left by halves."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from django.utils import timezone

from adapters.base import BaseSpec
from adapters.files import EXPECTED
from adapters.manifest import File
from adapters.merge.standalone import plan_merge, write
from audit.models import Event
from audit.services import SYSTEM
from dispatch import SOON
from merges.models import Kind, Merge, State
from merges.services import cancel_merge, resume_merges, run_merge, running, tidy_merges
from merges.services.leases import ATTEMPTS
from merges.services.requests import LEASE
from registry.models import State as VersionState
from registry.models import Version
from registry.services import validate_version
from tenants.models import Tenant
from tests.merges.conftest import SMALL_SHARDS

pytestmark = pytest.mark.django_db(transaction=True)

Pushes = Callable[..., Version]
Files = Callable[[], set[str]]

CHECKPOINT = [
    "merging:1", "merging:15", "entered:rename", "verifying:5", "sealing:4",
    "entered:finish_checkpoint", "left:settle",
]  # fmt: skip
VERSION = ["merging:1", "merging:5", "entered:finish_version", "left:admit", "left:settle"]


@pytest.fixture(scope="module")
def undisturbed(
    peft_folders: list[Path], spec: BaseSpec, tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The hashes of the weights that a merge makes which nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write(plan_merge(peft_folders[0], spec, str(tiny_base_model), shard=SMALL_SHARDS), folder)
    return {path.name: File.of(path).sha256 for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("point", CHECKPOINT)
def test_a_killed_merge_into_the_base_is_resumed_and_ends_as_if_nothing_had_been(
    point: str,
    undisturbed: dict[str, str],
    acme: Tenant,
    push: Pushes,
    merged_in: Callable[[Version], Merge],
    run_killed: Callable[[Merge, str], int],
    files_of: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge = merged_in(push(acme, "support"))
    assert run_killed(merge, point) == signal.SIGKILL
    merge.refresh_from_db()
    assert (merge.state, merge.files) == (State.RUNNING, [])
    Merge.objects.filter(pk=merge.pk).update(leased_until=timezone.now() + LEASE - 2 * SOON)
    monkeypatch.setattr(running, "idle", lambda _: True)
    assert resume_merges() == 1  # its session is gone, which is enough
    assert run_merge(merge.pk) == State.READY
    merge.refresh_from_db()
    assert {file["name"]: file["sha256"] for file in merge.files}.items() >= undisturbed.items()
    assert files_of() == {f"merges/{merge.pk}/result/{file['name']}" for file in merge.files}
    ready = Event.objects.filter(action="merge:ready", target=str(merge))
    assert ready.count() == 1


@pytest.mark.parametrize("point", VERSION)
def test_a_killed_combination_makes_one_version_or_none(
    point: str,
    acme: Tenant,
    push: Pushes,
    combined: Callable[..., Merge],
    run_killed: Callable[[Merge, str], int],
    desert: Callable[..., None],
    files_of: Files,
) -> None:
    one, two = push(acme, "support"), push(acme, "support", 1)
    merge = combined(one, two)
    assert run_killed(merge, point) == signal.SIGKILL
    assert set(one.adapter.versions.values_list("number", flat=True)) == {1, 2}
    desert(merge.pk)
    assert run_merge(merge.pk) == State.READY
    merge.refresh_from_db()
    made = merge.version
    assert made is not None
    assert set(one.adapter.versions.values_list("number", flat=True)) == {1, 2, 3}
    assert files_of() == {f"quarantine/{made.pk}/{name}" for name in EXPECTED}
    assert validate_version(made.pk) == VersionState.READY
    assert files_of() == set()


@pytest.mark.parametrize("kind", Kind)
def test_a_merge_that_is_killed_again_and_again_fails_and_leaves_nothing(
    kind: Kind,
    acme: Tenant,
    push: Pushes,
    merged_in: Callable[[Version], Merge],
    combined: Callable[..., Merge],
    run_killed: Callable[[Merge, str], int],
    desert: Callable[..., None],
    files_of: Files,
) -> None:
    one, two = push(acme, "support"), push(acme, "support", 1)
    merge = merged_in(one) if kind == Kind.CHECKPOINT else combined(one, two)
    for _ in range(ATTEMPTS):
        assert run_killed(merge, "left:settle") == signal.SIGKILL
        assert files_of()
        desert(merge.pk)
    assert run_merge(merge.pk) is None
    merge.refresh_from_db()
    assert (merge.state, merge.finding["rule"]) == (State.FAILED, "broken-off")
    assert files_of() == set()
    assert one.adapter.versions.count() == 2


def test_a_merge_whose_worker_was_killed_can_be_cancelled_and_leaves_nothing(
    acme: Tenant,
    push: Pushes,
    merged_in: Callable[[Version], Merge],
    combined: Callable[..., Merge],
    run_killed: Callable[[Merge, str], int],
    files_of: Files,
) -> None:
    one, two = push(acme, "support"), push(acme, "support", 1)
    for merge, point in ((merged_in(one), "verifying:5"), (combined(one, two), "left:admit")):
        assert run_killed(merge, point) == signal.SIGKILL
        assert files_of()
        cancel_merge(merge, actor=SYSTEM)
        assert files_of() == set()
        assert run_merge(merge.pk) is None
    assert tidy_merges() == 0
