"""Rollouts are begun in the console by the plan that the API would make."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from audit.models import Action
from console.pages.plans import read, written
from registry.models import State as VersionState
from registry.models import Version
from rollouts.models import Rollout, State
from rollouts.services import PlannedStep
from tenants.models import Role

from .conftest import Yard
from .forms import assert_by, errors, path, recorded


@pytest.fixture
def canary(ours: Yard) -> Version:
    return another(ours)


def another(yard: Yard) -> Version:
    digest = f"sha256:{2 * yard.tenant.pk.hex}"
    return Version.objects.create(
        adapter=yard.adapter, number=9, state=VersionState.READY, digest=digest, uploader="test"
    )


def fields(version: Version, **changes: Any) -> dict[str, Any]:
    """As a browser sends the form that nobody has touched."""
    told = {"alias": "stable", "steps": "5 % 60 s 10 samples gate\n100 %", "guardrails": ["error_rate"]}
    return {"canary": str(version.pk), **told, "unit": "auto", "on_new": "refuse", "start": "on", **changes}


def test_a_rollout_is_begun_with_its_steps_and_guardrails(desk: Client, operator: User, canary: Version) -> None:
    plan = {"steps": "100% shadow\n2.5 % 60 s 10 samples at most 3600 s gate\n\n100", "observed": ["output_length"]}
    answer = desk.post(path(Rollout, "add"), fields(canary, **plan, unit="user", override="on"))
    rollout = Rollout.objects.get()
    assert answer.headers["Location"] == path(Rollout, "change", rollout.pk)
    assert (rollout.state, rollout.canary, rollout.unit, rollout.override) == ("validating", canary, "user", True)
    columns = ("weight", "shadow", "min_seconds", "min_samples", "max_seconds", "gate")
    assert list(rollout.steps.values_list(*columns)) == [
        (10_000, True, 300, 100, None, False),
        (250, False, 60, 10, 3600, True),
        (10_000, False, 300, 100, None, False),
    ]
    watched = [(guardrail["metric"], guardrail["mode"]) for guardrail in rollout.guardrails]
    assert watched == [("error_rate", "enforce"), ("output_length", "observe")]
    assert_by(recorded(Action.ROLLOUT_CREATED), operator)
    assert_by(recorded(Action.ROLLOUT_STARTED), operator)


def test_the_form_as_it_comes_begins_the_usual_one(desk: Client, canary: Version) -> None:
    form = desk.get(path(Rollout, "add"), {"canary": str(canary.pk)}).context["form"]
    told = {name: form[name].value() for name in form.fields if form[name].value() is not None}
    switches = {name: value for name, value in told.items() if value is not False}
    assert desk.post(path(Rollout, "add"), switches).status_code == 302
    assert [step.weight for step in Rollout.objects.get().steps.all()] == [100, 500, 2500, 5000]


def test_a_draft_is_started_by_a_verb(desk: Client, operator: User, canary: Version) -> None:
    draft = fields(canary)
    del draft["start"]
    desk.post(path(Rollout, "add"), draft)
    rollout = Rollout.objects.get()
    assert rollout.state == State.DRAFT
    desk.post(path(Rollout, "start", rollout.pk))
    assert Rollout.objects.get().state == State.VALIDATING
    desk.post(path(Rollout, "start", rollout.pk))  # doesn't apply any more
    assert_by(recorded(Action.ROLLOUT_STARTED), operator)
    assert "a rollout under way" in errors(desk.post(path(Rollout, "add"), fields(canary)))["__all__"][0]


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"steps": "soon"}, "steps"),
    ({"steps": ""}, "steps"),
    ({"steps": "0 %"}, "steps"),
    ({"steps": "50 %\n5 %"}, "steps"),
    ({"steps": "101 %"}, "steps"),
    ({"steps": "5 % 60 s 10 samples at most 30 s"}, "steps"),
    ({"guardrails": ["moon"]}, "guardrails"),
    ({"observed": ["error_rate"]}, "guardrails"),
    ({"guardrails": ["schema_validity"]}, "schema"),
    ({"guardrails": ["evaluation_score"]}, "evaluation"),
    ({"schema": "{"}, "schema"),
    ({"schema": "[1]"}, "schema"),
    ({"schema": '{"type": 3}'}, "schema"),
    ({"unit": "moon"}, "unit"),
    ({"alias": "nowhere"}, "__all__"),
    ({"canary": ""}, "canary"),
]


def test_what_makes_no_sense_is_refused_at_its_field(desk: Client, canary: Version) -> None:
    for changes, at in NONSENSE:
        assert list(errors(desk.post(path(Rollout, "add"), fields(canary, **changes)))) == [at], changes
    assert not Rollout.objects.exists()


def test_editors_begin_them_for_their_own_versions_alone(
    ours: Yard, strangers: Yard, canary: Version, member_of: Callable[..., Client]
) -> None:
    editor, viewer = member_of(ours.tenant, Role.EDITOR), member_of(ours.tenant)
    theirs = another(strangers)
    assert viewer.post(path(Rollout, "add"), fields(canary)).status_code == 403
    assert "canary" in errors(editor.post(path(Rollout, "add"), fields(theirs)))
    assert "globex" not in editor.get(path(Rollout, "add"), {"canary": str(theirs.pk)}).content.decode()
    assert not Rollout.objects.exists()
    assert editor.post(path(Rollout, "add"), fields(canary)).status_code == 302
    assert Rollout.objects.get().adapter == ours.adapter


@pytest.mark.parametrize("step", [PlannedStep(100), PlannedStep(250, min_seconds=0, min_samples=0)])
def test_a_step_is_read_as_it_is_written(step: PlannedStep) -> None:
    assert read(written(step)) == step
