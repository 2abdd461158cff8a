"""A worker is killed in the middle of a tick, under traffic: another takes the rollout up, and no move is made twice.

A row that the test has locked holds the tick where it is to be killed.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from openai import OpenAIError

from tests.gateway.conftest import Customer
from tests.processes import Platform, wait_for

CHAIN = "SELECT c.id FROM audit_chain c JOIN tenants_tenant t ON t.id = c.id WHERE t.slug = %s"
URL = "/api/v1/adapters/desk/rollouts"
STEPS = [{"weight": weight, "min_seconds": 0, "min_samples": 1} for weight in (40, 70, 100)]


@pytest.fixture
def owner(
    request: pytest.FixtureRequest,
    platform: Platform,
    upload: Callable[[str, str, Path], int],
    make_adapter: Callable[..., Path],
    base_model_folder: Path,
    tmp_path: Path,
) -> Customer:
    slug = f"gate-killed-{sum(map(ord, request.node.name))}"
    _, key = platform.tenant(slug)
    for seed in (31, 32):
        upload(key, "desk", make_adapter(tmp_path / str(seed), base_model_folder, rank=2, seed=seed))
    return Customer(platform.url, slug, key)


@pytest.fixture
def traffic(owner: Customer) -> Iterator[list[str]]:
    """Users who ask again and again; what went wrong for them."""
    failures: list[str] = []
    over = threading.Event()

    def ask() -> None:
        number = 0
        while not over.wait(0.05):
            number += 1
            try:
                owner.chat("desk", tokens=1, user=f"user-{number % 20}")
            except OpenAIError as error:
                failures.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    yield failures
    over.set()
    asking.join(30)


def ticker(platform: Platform) -> psutil.Process | None:
    """The worker that drives rollouts, if it lives."""
    home = platform.environment["LORAYARD_HOME"]
    for process in psutil.process_iter():
        try:
            if "rollouts@%h" in process.cmdline() and process.environ().get("LORAYARD_HOME") == home:
                return process
        except psutil.Error:
            continue
    return None


class Lock:
    """A row of the platform's that nobody else gets until it is released."""

    def __init__(self, platform: Platform, query: str, *arguments: object) -> None:
        url = platform.environment["DATABASE_URL"]
        self._holder, self._watcher = psycopg.connect(url), psycopg.connect(url, autocommit=True)
        assert self._holder.execute(f"{query} FOR UPDATE", arguments).fetchone() is not None

    def wanted(self) -> bool:
        waiting = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        return self._watcher.execute(waiting, [self._holder.info.backend_pid]).fetchone() is not None

    def release(self) -> None:
        self._holder.close()
        self._watcher.close()


@pytest.fixture
def lock(platform: Platform) -> Iterator[Callable[..., Lock]]:
    made: list[Lock] = []

    def take(query: str, *arguments: object) -> Lock:
        made.append(Lock(platform, query, *arguments))
        return made[-1]

    yield take
    for each in made:
        each.release()


def shown(owner: Customer, rollout: str) -> dict[str, Any]:
    return dict(owner.request("GET", f"{URL}/{rollout}").json())


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "written", [True, pytest.param(False, marks=pytest.mark.soak)], ids=["after-its-move", "before-its-move"]
)
def test_another_takes_a_rollout_up_where_a_killed_worker_left_it(
    platform: Platform, owner: Customer, traffic: list[str], lock: Callable[..., Lock], written: bool
) -> None:
    rollout = owner.request("POST", URL, json={"version": 2, "steps": STEPS, "start": False}).json()["id"]
    held = lock("SELECT id FROM rollouts_step WHERE rollout_id = %s AND number = 1", rollout)
    first = ticker(platform)
    assert first is not None
    assert owner.request("POST", f"{URL}/{rollout}/start").status_code == 200
    wait_for(held.wanted, 30, "a tick on its way to the second step")
    if written:
        step, held = held, lock(CHAIN, owner.slug)
        step.release()
        wait_for(held.wanted, 30, "a tick that has moved the rollout and not yet told the audit chain")
    first.kill()
    first.wait(10)
    held.release()
    wait_for(lambda: shown(owner, rollout)["state"] == "succeeded", 90, "the end that others bring about")
    second = ticker(platform)
    assert second is not None
    assert second.pid != first.pid
    assert traffic == []
    assert events(owner, rollout) == [
        *("created", "started", "stepped", "stepped", "stepped", "stepped", "promoting", "succeeded")
    ]
    moves = owner.request("GET", "/api/v1/adapters/desk/aliases/stable/moves").json()["results"]
    assert [(move["kind"], move["to_version"]) for move in moves] == [("moved", 2), ("created", 1)]
    _, strangers_key = platform.tenant("stranger")
    assert Customer(platform.url, "stranger", strangers_key).request("GET", f"{URL}/{rollout}").status_code == 404


def events(owner: Customer, rollout: str) -> list[str]:
    """What the audit chain says was done to it. Each event begins where the one before ended."""
    told = owner.request("GET", "/api/v1/audit?limit=200").json()["results"]
    mine = [event for event in reversed(told) if event["data"].get("rollout") == rollout]
    moves = [event["data"] for event in mine if "before" in event["data"]]
    assert [move["before"] for move in moves[1:]] == [move["after"] for move in moves[:-1]]
    return [event["action"].removeprefix("rollout:") for event in mine]
