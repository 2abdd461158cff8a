"""Versions to be merged, and a process that runs merges in children that are killed."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings as configured
from django.db import connection

from audit.services import SYSTEM
from merges.models import Merge, Method, State
from merges.services import Source, merge_into_base, merge_versions, run_merge, running
from registry.models import Version
from registry.services import ensure_adapter
from tenants.models import Tenant
from tests.merges.asking import Pushes, Run
from tests.processes import ROOT, environment
from tests.registry.conftest import base, home, peft_folders, push, spec

__all__ = ["base", "home", "peft_folders", "push", "spec"]

SMALL_SHARDS = 40_000  # bytes: eleven of the tiny model


@pytest.fixture(autouse=True)
def _small_and_talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards of a small model, and a word after every step."""
    monkeypatch.setattr(running, "SHARD", SMALL_SHARDS)
    monkeypatch.setattr(running, "TOLD_EVERY", 0.0)


@pytest.fixture
def merged_in() -> Callable[[Version], Merge]:
    return lambda version: merge_into_base(version, actor=SYSTEM)


@pytest.fixture
def combined() -> Callable[..., Merge]:
    def ask(one: Version, two: Version, method: Method = Method.LINEAR, **options: Any) -> Merge:
        sources = [Source(one, 0.75), Source(two, -0.5)]
        return merge_versions(one.adapter, sources, method=method, options=options, actor=SYSTEM)

    return ask


@pytest.fixture
def files_of(home: Path) -> Callable[[], set[str]]:
    """All that lies in the home's folders of merges and of uploads that wait."""

    def found() -> set[str]:
        paths = (path for name in ("merges", "quarantine") for path in (home / name).rglob("*"))
        return {str(path.relative_to(home)) for path in paths if path.is_file()}

    return found


@pytest.fixture(scope="session")
def _killer(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """One process that has imported all it needs, and forks."""
    database = connection.settings_dict
    told = {
        "LORAYARD_HOME": str(tmp_path_factory.mktemp("killer")),
        "DATABASE_URL": f"postgresql://lorayard@/{database['NAME']}?host={database['HOST']}",
        "REDIS_URL": configured.LORAYARD.redis_url,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
        "OMP_NUM_THREADS": "1",
    }
    argv = [sys.executable, "-m", "tests.merges.killed", str(SMALL_SHARDS)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=environment(**told), cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def run_killed(_killer: subprocess.Popen[str], home: Path) -> Callable[[Merge, str], int]:
    """Works on the merge in a process that is killed at a point of tests.merges.killed; returns the signal, or 0."""

    def run(merge: Merge, point: str) -> int:
        assert _killer.stdin is not None
        assert _killer.stdout is not None
        print(merge.pk, point, home, file=_killer.stdin, flush=True)
        return int(_killer.stdout.readline())

    return run


@pytest.fixture
def desert() -> Callable[[UUID], None]:
    """Lets a dead worker's lease run out."""

    def run_out(merge: UUID) -> None:
        Merge.objects.filter(pk=merge).update(leased_until="2020-01-01T00:00:00Z")

    return run_out


@pytest.fixture
def run(django_capture_on_commit_callbacks: Any) -> Run:
    """Works on a merge as a worker does, where every transaction is committed."""

    def work(told: Any, **named: Any) -> State | None:
        with django_capture_on_commit_callbacks(execute=True):
            return run_merge(told["id"], **named)

    return work


@pytest.fixture
def two(acme: Tenant, push: Pushes) -> list[Version]:
    """support@v1 and query@v1 of acme, which also has the name `mixed`."""
    made = [push(acme, "support"), push(acme, "query", 1)]
    ensure_adapter(acme, "mixed", actor=SYSTEM)
    return made
