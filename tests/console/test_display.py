"""What pages show of nested data: all of it, down to the values, for every kind of event and a rollout's figures."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from apikeys.models import Scope
from apikeys.services import issue
from audit.models import Event
from audit.services import SYSTEM, Actor
from console import actors
from console.display import pairs
from registry.models import Version
from registry.services import ensure_adapter
from rollouts.models import Rollout, Step
from tenants.models import Tenant
from tenants.services import change_tenant
from tests.furnished import furnish

from .conftest import Commits
from .forms import path, ready

Push = Callable[..., Version]


@pytest.fixture
def push(desk: Client, base: Any, peft_folder: Path, django_capture_on_commit_callbacks: Commits) -> Push:
    """A ready version, as `furnish` asks for it; its callers tell versions apart by nothing."""

    def run(tenant: Tenant, name: str, which: int = 0) -> Version:
        adapter = ensure_adapter(tenant, name, actor=SYSTEM)
        return ready(desk, adapter, peft_folder, django_capture_on_commit_callbacks)

    return run


def text_of(page: Any) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.content.decode())))


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif value not in (None, "") and not isinstance(value, bool):
        yield value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"before": {"weight": "1.0"}, "after": {"weight": "2.0"}}, ["weight: 1.0", "weight: 2.0"]),
        ({"figures": {"canary": {"requests": 1200, "errors": 0}}}, ["canary: requests: 1,200; errors: 0"]),
        ({"empty": {}, "none": None, "blank": "", "list": []}, ["<dd>-</dd>"] * 4),
        ({"flags": [True, False], "zero": 0}, ["yes, no", "<dd>0</dd>"]),
    ],
)
def test_nested_values_are_shown_and_only_what_is_empty_is_a_dash(value: dict[str, Any], shown: list[str]) -> None:
    page = pairs(value)
    for text in shown:
        assert text in page
    assert page.count("<dd>-</dd>") == shown.count("<dd>-</dd>")


def test_an_event_s_page_shows_every_value_that_it_recorded(
    desk: Client, push: Push, acme: Tenant, globex: Tenant
) -> None:
    for tenant in (acme, globex):
        furnish(tenant, push)
    change_tenant(acme, weight=2.5, name="Acme Ltd", actor=Actor("user", "1"))
    kinds = {event.action: event for event in Event.objects.all()}
    assert len(kinds) > 10
    for event in kinds.values():
        page = text_of(desk.get(path(Event, "change", event.pk)))
        for leaf in leaves(event.data):
            assert (f"{leaf:,}" if isinstance(leaf, int) else str(leaf)) in page, (event.action, leaf)


def test_a_rollout_s_page_shows_the_figures_of_both_arms(desk: Client, push: Push, acme: Tenant) -> None:
    rollout = furnish(acme, push).rollout
    sums = {"requests": 1234, "errors": 7, "first_token": 0.5, "first_token_count": 1}
    Step.objects.filter(rollout=rollout, number=rollout.step).update(sums={"stable": sums, "canary": sums})
    page = text_of(desk.get(path(Rollout, "change", rollout.pk)))
    for arm in ("stable", "canary"):
        assert f"{arm} requests: 1,234; errors: 7" in page


def test_actors_are_people_and_keys_by_name(desk: Client, operator: Any, acme: Tenant) -> None:
    key, _ = issue(acme, name="deployer", scopes=[Scope.ADAPTERS_WRITE], actor=Actor("user", str(operator.pk)))
    change_tenant(acme, weight=3.0, actor=Actor("key", str(key.pk)))
    change_tenant(acme, weight=4.0, actor=Actor("user", "999999"))
    page = text_of(desk.get(path(Event, "changelist")))
    for name in ("olivia", "key “deployer”", "the platform", "user:999999"):
        assert name in page
    assert "olivia" in text_of(desk.get("/"))
    assert actors.names(["key:no-uuid", "user:x", "odd"]) == {
        "key:no-uuid": "key:no-uuid",
        "user:x": "user:x",
        "odd": "odd",
    }


def test_the_same_files_uploaded_again_are_told_so_and_a_stranger_s_are_not_mentioned(
    desk: Client, ours: Any, strangers: Any, peft_folder: Any, django_capture_on_commit_callbacks: Any
) -> None:
    again = ready(desk, ours.adapter, peft_folder, django_capture_on_commit_callbacks)
    assert again.digest == ours.ready.digest == strangers.ready.digest
    page = text_of(desk.get(path(Version, "change", again.pk)))
    assert f"Same files as {ours.ready}" in page
    assert str(strangers.ready) not in page
    assert "Same files as" not in text_of(desk.get(path(Version, "change", strangers.ready.pk)))
