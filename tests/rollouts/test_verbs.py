"""What people do to rollouts, and what they are refused."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, ProgrammingError, transaction
from django.utils import timezone

from audit.models import Event
from audit.services import SYSTEM
from audit.verification import verify
from registry.errors import AliasMoved, VersionNotReady
from registry.models import Adapter
from rollouts import services
from rollouts.errors import NotNow, RolledBackBefore, RolloutActive, RolloutInvalid, RolloutOver
from rollouts.models import FORWARD, Cause, OnNew, Pause, Rollout, State, Step
from rollouts.services import Plan, PlannedStep
from tenants.models import Tenant
from tests.rollouts.conftest import QUICK

Begin = Callable[..., Rollout]


def plan(version: int = 2, **fields: Any) -> Plan:
    return Plan(version=version, **{"steps": [QUICK], **fields})


def create(adapter: Adapter, *, start: bool = True, **fields: Any) -> Rollout:
    return services.create_rollout(adapter, plan(**fields), actor=SYSTEM, start=start)


def ended(rollout: Rollout) -> Rollout:
    services.tick()
    rollout.refresh_from_db()
    return rollout


def test_every_change_leaves_an_event(acme: Tenant, begin: Begin) -> None:
    rollout = begin()
    services.pause(rollout, actor=SYSTEM)
    services.resume(rollout, actor=SYSTEM)
    services.abort(rollout, actor=SYSTEM, reason="odd answers")
    ended(rollout)
    actions = list(Event.objects.for_tenant(acme).order_by("pk").values_list("action", flat=True))
    expected = ["created", "started", "stepped", "stepped", "paused", "resumed", "rolling-back", "rolled-back"]
    assert actions[1:] == [f"rollout:{action}" for action in expected]
    assert Event.objects.get(action="rollout:rolling-back").data["reasons"] == ["odd answers"]
    assert verify(acme) == []


@pytest.mark.parametrize("state", FORWARD)
def test_abort_works_in_every_state(begin: Begin, state: str) -> None:
    at = state if state in (State.VALIDATING, State.PRELOADING, State.PAUSED) else State.PROGRESSING
    rollout = begin(at=at, steps=[PlannedStep(100, shadow=state == State.SHADOWING), QUICK])
    if state == State.PROMOTING:
        rollout = services.promote(rollout, actor=SYSTEM)
    assert rollout.state == state
    aborted = services.abort(rollout, actor=SYSTEM)
    assert (aborted.state, aborted.weight, aborted.copies) == (State.ROLLING_BACK, 0, 0)
    assert services.abort(rollout, actor=SYSTEM).state == State.ROLLING_BACK
    assert ended(rollout).state == State.ROLLED_BACK
    with pytest.raises(RolloutOver):
        services.abort(rollout, actor=SYSTEM)


def test_abort_works_while_it_waits_at_a_gate(begin: Begin) -> None:
    rollout = begin()
    services.changes.hold(rollout, Pause.GATE, [], actor=SYSTEM)
    assert services.abort(rollout, actor=SYSTEM).state == State.ROLLING_BACK


def test_a_draft_waits_and_stands_in_nobodys_way(adapter: Adapter) -> None:
    draft = create(adapter, start=False)
    other = create(adapter)
    with pytest.raises(RolloutActive):
        services.start_rollout(draft, actor=SYSTEM)
    services.abort(other, actor=SYSTEM)
    assert ended(other).state == State.ROLLED_BACK
    assert services.abort(draft, actor=SYSTEM).state == State.ROLLED_BACK


def test_a_second_rollout_of_an_alias_is_refused(adapter: Adapter) -> None:
    create(adapter)
    with pytest.raises(RolloutActive):
        create(adapter)
    assert Rollout.objects.count() == 1


def test_the_constraint_refuses_it_too(adapter: Adapter, begin: Begin) -> None:
    begin()
    draft = create(adapter, start=False)
    with pytest.raises(IntegrityError, match="rollout_one_active_per_alias"), transaction.atomic():
        Rollout.objects.filter(pk=draft.pk).update(state=State.VALIDATING)


def test_one_that_gives_way_is_replaced_by_a_new_one(adapter: Adapter, begin: Begin) -> None:
    first = begin(on_new=OnNew.RESTART)
    second = create(adapter)
    first.refresh_from_db()
    assert (first.state, first.cause, first.weight) == (State.ROLLED_BACK, Cause.SUPERSEDED, 0)
    assert second.state == State.VALIDATING


def test_a_version_that_was_rolled_back_is_tried_again_only_by_override(adapter: Adapter, begin: Begin) -> None:
    rollout = begin()
    services.abort(rollout, actor=SYSTEM)
    ended(rollout)
    with pytest.raises(RolledBackBefore):
        create(adapter)
    again = create(adapter, override=True)
    assert again.override


def test_one_that_is_rolling_back_was_rolled_back(adapter: Adapter, begin: Begin) -> None:
    rollout = begin(on_new=OnNew.RESTART)
    services.changes.roll_back(rollout, Cause.VERDICT, ["too many errors"], actor=SYSTEM)
    for start in (True, False):
        with pytest.raises(RolledBackBefore):
            create(adapter, start=start)
    rollout.refresh_from_db()
    assert rollout.state == State.ROLLING_BACK
    create(adapter, override=True)
    assert ended(rollout).state == State.ROLLED_BACK


def test_a_draft_that_was_dropped_or_replaced_says_nothing_of_its_version(adapter: Adapter, begin: Begin) -> None:
    services.abort(create(adapter, start=False), actor=SYSTEM)
    begin(on_new=OnNew.RESTART)
    create(adapter)


def test_states_move_along_the_arrows_only(begin: Begin) -> None:
    rollout = begin()
    with pytest.raises(ProgrammingError, match="Invalid transition"), transaction.atomic():
        Rollout.objects.filter(pk=rollout.pk).update(state=State.SUCCEEDED, weight=0)


def test_no_traffic_goes_to_what_is_not_under_way(begin: Begin) -> None:
    rollout = begin()
    services.abort(rollout, actor=SYSTEM)
    with pytest.raises(IntegrityError, match="rollout_takes_traffic_only_when_routed"), transaction.atomic():
        Rollout.objects.filter(pk=rollout.pk).update(weight=1)


def test_verbs_say_when_they_do_not_apply(begin: Begin) -> None:
    rollout = begin()
    for verb in (services.resume, services.approve, services.start_rollout):
        with pytest.raises(NotNow):
            verb(rollout, actor=SYSTEM)
    services.pause(rollout, actor=SYSTEM)
    with pytest.raises(NotNow):
        services.pause(rollout, actor=SYSTEM)
    with pytest.raises(NotNow):
        services.approve(rollout, actor=SYSTEM)


def test_a_gate_is_passed_by_approval_and_not_by_resuming(begin: Begin) -> None:
    rollout = begin(steps=[QUICK, PlannedStep(6000)])
    services.changes.hold(rollout, Pause.GATE, [], actor=SYSTEM)
    with pytest.raises(NotNow):
        services.resume(rollout, actor=SYSTEM)
    approved = services.approve(rollout, actor=SYSTEM)
    assert (approved.state, approved.step, approved.weight) == (State.PROGRESSING, 1, 6000)


def test_the_time_that_it_was_paused_is_not_the_steps(begin: Begin) -> None:
    rollout = begin(steps=[PlannedStep(100, min_seconds=60)])
    hour = timedelta(hours=1)
    Step.objects.update(entered_at=timezone.now() - hour - timedelta(seconds=30))
    services.pause(rollout, actor=SYSTEM)
    Rollout.objects.update(entered_at=timezone.now() - hour)
    step = services.resume(rollout, actor=SYSTEM).current
    assert 29 < step.seconds(timezone.now()) < 32


STEPS: list[list[PlannedStep]] = [
    [],
    [PlannedStep(0)],
    [PlannedStep(10_001)],
    [PlannedStep(500), PlannedStep(100)],
    [PlannedStep(100), PlannedStep(100, shadow=True)],
    [PlannedStep(100, shadow=True)],
    [PlannedStep(100, min_seconds=10, max_seconds=5)],
    [PlannedStep(100)] * 21,
]


@pytest.mark.parametrize("steps", STEPS)
def test_a_plan_that_makes_no_sense_is_refused(adapter: Adapter, steps: list[PlannedStep]) -> None:
    with pytest.raises(RolloutInvalid):
        create(adapter, steps=steps)


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "http://example.com"}, {"pattern": "(a+)+$"}, {"enum": ["x" * 20_000]}]
)
def test_a_schema_that_is_wrong_or_leads_elsewhere_is_refused(adapter: Adapter, schema: Any) -> None:
    with pytest.raises(RolloutInvalid):
        create(adapter, schema=schema)


def test_an_unready_version_and_an_unknown_alias_are_refused(adapter: Adapter) -> None:
    with pytest.raises(VersionNotReady):
        create(adapter, version=3)
    with pytest.raises(AliasMoved):
        create(adapter, alias="champion")
    with pytest.raises(RolloutInvalid):
        create(adapter, version=1)
