"""How a canary gets to the engine before anybody meets it."""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from audit.services import SYSTEM
from inference.client import AdapterFaulty, AdapterMissing, AdapterUnavailable, EngineError
from registry.models import Adapter
from rollouts import services
from rollouts.models import Cause, Rollout, State
from rollouts.services import loading
from tenants.models import Tenant
from tests.rollouts.conftest import make_adapter_of
from tests.rollouts.ticking import Begin, after_a_tick


@pytest.fixture
def silent_engine(settings: Any, tmp_path: Path) -> Iterator[None]:
    """One that takes calls and never answers."""
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "engine.sock"))
        engine.listen()
        settings.LORAYARD = settings.LORAYARD.model_copy(update={"engine_url": f"unix:{tmp_path}/engine.sock"})
        yield


def test_without_an_engine_it_waits_to_be_loaded_then_gives_up_and_blames_nobody(
    adapter: Adapter, begin: Begin, settings: Any
) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"engine_url": "unix:/nowhere/engine.sock"})
    rollout = begin(at=State.VALIDATING)
    assert after_a_tick(rollout).state == State.PRELOADING
    assert after_a_tick(rollout).state == State.PRELOADING
    Rollout.objects.update(entered_at=timezone.now() - timedelta(minutes=11))
    assert (after_a_tick(rollout).state, rollout.cause) == (State.ROLLED_BACK, Cause.ENGINE)
    services.create_rollout(adapter, services.Plan(version=2), actor=SYSTEM)


def test_canaries_that_are_being_loaded_keep_no_other_rollout_waiting(
    acme: Tenant, begin: Begin, silent_engine: None
) -> None:
    for name in ("one", "two", "three"):
        other = make_adapter_of(acme, name)
        waiting = services.create_rollout(other, services.Plan(version=2), actor=SYSTEM)
        services.changes.move(waiting, State.PRELOADING, actor=SYSTEM)
    aborted = services.abort(begin(), actor=SYSTEM)
    started = time.monotonic()
    assert after_a_tick(aborted).state == State.ROLLED_BACK
    assert time.monotonic() - started < 8  # a second, where each once took ten
    assert Rollout.objects.filter(state=State.PRELOADING).count() == 3


def test_a_load_that_outlasts_a_tick_is_asked_for_once_and_found_done_later(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine gives up what nobody waits for any more, so to ask at every tick would be to begin at every tick."""
    asked, loaded = list[int](), threading.Event()

    def ask(_: object) -> None:
        asked.append(1)
        loaded.wait(30)

    monkeypatch.setattr(loading, "ask", ask)
    monkeypatch.setattr(loading, "PATIENCE", 0.05)
    rollout = begin(at=State.PRELOADING)
    assert after_a_tick(rollout).state == State.PRELOADING
    assert after_a_tick(rollout).state == State.PRELOADING
    loaded.set()
    monkeypatch.setattr(loading, "PATIENCE", 10.0)
    assert after_a_tick(rollout).state == State.PROGRESSING
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("error", "fault"),
    [(AdapterFaulty("damaged"), "damaged"), (AdapterMissing("gone"), "gone"), (AdapterUnavailable("slow"), "")],
)
def test_what_is_no_fault_of_the_files_is_none_of_the_canary_s(
    error: EngineError, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: object) -> None:
        raise error

    monkeypatch.setattr(loading, "ask", ask)
    assert loading._loaded("sha256:0") == loading.Load(False, fault)
