"""A version is tried on a real engine before it is ready; where it can't be, that is said and nothing else changes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from config import env
from registry.models import Alias, BaseModel, State, Version
from registry.services import trial
from tenants.models import Tenant

Push = Callable[..., Version]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def served(engine: str, settings: Any) -> None:
    """The engine's store is the one that versions are put into."""
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"store_url": env.load().store_url})


@pytest.fixture
def overflowing(folder: Path) -> Path:
    """Finite weights with which every logit is infinite or no number."""
    tensors = load_file(folder / WEIGHTS)
    save_file({name: torch.full_like(tensor, 1e30) for name, tensor in tensors.items()}, folder / WEIGHTS)
    return folder


def rules(version: Version) -> list[str]:
    return [finding["rule"] for finding in version.findings]


def test_a_version_whose_numbers_overflow_never_becomes_ready(
    served: None, acme: Tenant, push: Push, overflowing: Path, left_behind: Callable[[], set[str]]
) -> None:
    version = push(acme, "support", overflowing)
    assert (version.state, rules(version)) == (State.REJECTED, ["non-finite-output"])
    assert not Alias.objects.exists()
    assert left_behind() == set()


def test_a_version_that_answers_becomes_ready_without_a_word(served: None, acme: Tenant, push: Push) -> None:
    version = push(acme, "support")
    assert (version.state, rules(version)) == (State.READY, [])


def test_while_the_engine_is_down_a_version_becomes_ready_with_a_note(
    acme: Tenant, push: Push, settings: Any, overflowing: Path
) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"engine_url": "unix:/nowhere/engine.sock"})
    started = time.monotonic()
    version = push(acme, "support", overflowing)
    assert (version.state, rules(version)) == (State.READY, ["not-tried"])
    assert version.findings[0]["severity"] == "note"
    assert time.monotonic() - started < 60, "validation waited for an engine that is not there"


def test_an_engine_that_does_not_have_the_files_says_nothing_about_them(
    engine: str, acme: Tenant, push: Push, overflowing: Path
) -> None:
    tensors = load_file(overflowing / WEIGHTS)  # of which no earlier test has left a copy with the engine
    save_file({name: torch.full_like(tensor, 2e30) for name, tensor in tensors.items()}, overflowing / WEIGHTS)
    version = push(acme, "support", overflowing)  # into a store of the test's own
    assert (version.state, rules(version)) == (State.READY, ["not-tried"])


def test_an_engine_that_is_slow_is_not_waited_for(
    served: None, acme: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "PATIENCE", 0.0)
    version = push(acme, "support")
    assert (version.state, rules(version)) == (State.READY, ["not-tried"])


def test_after_one_that_took_too_long_a_tenants_next_is_not_waited_for(
    served: None, acme: Tenant, globex: Tenant, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as slow:
        slow.setattr(trial, "PATIENCE", 0.0)
        push(acme, "support")
    assert rules(push(acme, "sales")) == ["not-tried"]
    assert rules(push(globex, "support")) == [], "a stranger's uploads are not tried either"
    assert rules(push(globex, "sales")) == [], "a trial that went well keeps its place"


def test_a_base_model_that_the_engine_does_not_hold_is_not_tried_there(
    served: None, acme: Tenant, base: BaseModel, push: Push, overflowing: Path
) -> None:
    push(acme, "support", validate=False)
    BaseModel.objects.update(is_default=False)
    version = push(acme, "support", overflowing)
    assert (version.state, rules(version)) == (State.READY, ["not-tried"])
    assert "another base model" in version.findings[0]["message"]
