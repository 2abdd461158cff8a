"""What a tick does with a rollout, by what was observed of either arm. The production code judges."""

from typing import Any

import pytest
from django.db import connections, transaction
from django.utils import timezone

from audit.models import Event
from audit.services import SYSTEM
from registry.models import Adapter, Alias
from registry.services import delete_alias, move_alias
from rollouts import services
from rollouts.models import Arm, Cause, Feedback, Pause, Sample, State, Step
from rollouts.services import PlannedStep
from rollouts.services.figures import figures
from rollouts.windows import Metric
from tenants.models import Tenant
from tests.rollouts.conftest import QUICK
from tests.rollouts.ticking import ERRORS, STEP, Begin, Observe, after_a_tick, both, older


def test_a_good_canary_goes_step_by_step_to_the_alias(
    acme: Tenant, adapter: Adapter, begin: Begin, observe: Observe
) -> None:
    rollout = begin(steps=[STEP, PlannedStep(7500, min_seconds=0, min_samples=100)], guardrails=ERRORS)
    both(observe, rollout)
    assert (after_a_tick(rollout).state, rollout.step, rollout.weight) == (State.PROGRESSING, 1, 7500)
    observe(rollout, Arm.STABLE, 100)
    observe(rollout, Arm.CANARY, 300)
    assert (after_a_tick(rollout).state, rollout.weight) == (State.SUCCEEDED, 0)
    assert Alias.objects.get(adapter=adapter).version.number == 2
    assert [look.kind for look in rollout.history.all()][:1] == ["success"]
    assert Event.objects.for_tenant(acme).filter(action="adapter:alias:moved").count() == 1
    assert services.tick() == 0


def test_a_canary_that_errs_is_rolled_back(adapter: Adapter, begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[STEP], guardrails=ERRORS)
    both(observe, rollout, error=20)
    assert (after_a_tick(rollout).state, rollout.cause) == (State.ROLLED_BACK, Cause.VERDICT)
    assert "error rate" in rollout.reasons[0]
    assert rollout.history.get().kind == "failure"
    assert Alias.objects.get(adapter=adapter).version.number == 1


def test_what_is_only_observed_rolls_nothing_back(begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[STEP], guardrails=({"metric": "error_rate", "mode": "observe"},))
    both(observe, rollout, error=100)
    assert after_a_tick(rollout).state == State.SUCCEEDED
    assert rollout.history.get().figures["findings"][0]["standing"] == "harm"


BAD = [
    ("empty_answers", {"empty": True}, {"empty": False}),
    ("cut_answers", {"finish": "length"}, {"finish": "stop"}),
    ("repetition", {"repetitive": True}, {"repetitive": False}),
    ("refusals", {"refusal": True}, {"refusal": False}),
    ("schema_validity", {"valid": False}, {"valid": True}),
    ("first_token_p95", {"first_token": 3.0}, {"first_token": 0.1}),
    ("inter_token_p95", {"inter_token": 0.5}, {"inter_token": 0.01}),
    ("output_length", {"tokens": 400}, {"tokens": 20}),
]


@pytest.mark.parametrize(("metric", "worse", "good"), BAD)
def test_every_guardrail_catches_its_harm(
    begin: Begin, observe: Observe, metric: str, worse: dict[str, Any], good: dict[str, Any]
) -> None:
    rollout = begin(steps=[STEP], guardrails=({"metric": metric},), schema={"type": "object"})
    observe(rollout, Arm.STABLE, 200, **good)
    observe(rollout, Arm.CANARY, 200, **worse)
    assert (after_a_tick(rollout).cause, rollout.state) == (Cause.VERDICT, State.ROLLED_BACK)


def test_cold_loads_are_no_latency(begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[STEP], guardrails=({"metric": "first_token_p95"},))
    both(observe, rollout)
    observe(rollout, Arm.CANARY, 50, first_token=30.0, cold=True)
    assert after_a_tick(rollout).state == State.SUCCEEDED


def test_a_canary_that_hangs_until_its_clients_leave_is_rolled_back(begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[STEP], guardrails=({"metric": "first_token_p95"},))
    both(observe, rollout)
    gone = {"outcome": "abandoned", "tokens": 0, "first_token": 30.0, "inter_token": None}
    observe(rollout, Arm.CANARY, 50)
    Sample.objects.filter(arm=Arm.CANARY).update(**gone)
    assert (after_a_tick(rollout).state, rollout.cause) == (State.ROLLED_BACK, Cause.VERDICT)
    assert "first token p95" in rollout.reasons[0]
    assert figures(rollout)["canary"]["mean_first_token"] is None


def test_thumbs_of_the_tenants_own_users_count(acme: Tenant, globex: Tenant, begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[STEP], guardrails=({"metric": "thumbs"},))
    both(observe, rollout)
    for number, sample in enumerate(Sample.objects.all()):
        sample.response = f"resp_{number:032x}"
        sample.save()
    ids = list(Sample.objects.filter(arm=Arm.CANARY).values_list("response", flat=True))
    now = timezone.now()
    Feedback.objects.bulk_create(Feedback(tenant=globex, response=id, up=False, at=now) for id in ids)
    mine = Sample.objects.filter(arm=Arm.STABLE).values_list("response", flat=True)
    Feedback.objects.bulk_create(Feedback(tenant=acme, response=id, up=True, at=now) for id in mine)
    step = rollout.current
    _, canary = services.evidence.gather(rollout, step)
    assert canary.samples(Metric.THUMBS) == 0
    Step.objects.update(counted_to=None, stable_window={}, canary_window={})
    for id in ids:
        services.give_feedback(acme, id, up=False)
    assert (after_a_tick(rollout).cause, rollout.state) == (Cause.VERDICT, State.ROLLED_BACK)
    assert "thumbs" in rollout.reasons[0]


def test_with_no_traffic_it_holds_then_pauses_and_never_rolls_back(begin: Begin) -> None:
    rollout = begin(steps=[PlannedStep(100, min_seconds=60, min_samples=100, max_seconds=3600)], guardrails=ERRORS)
    assert after_a_tick(rollout).state == State.PROGRESSING
    older(3000)
    assert after_a_tick(rollout).state == State.PROGRESSING
    older(3601)
    assert (after_a_tick(rollout).state, rollout.pause, rollout.weight) == (State.PAUSED, Pause.INCONCLUSIVE, 100)
    assert after_a_tick(rollout).state == State.PAUSED
    resumed = services.resume(rollout, actor=SYSTEM)
    assert after_a_tick(resumed).state == State.PROGRESSING


def test_a_step_lasts_as_long_as_it_says(begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[PlannedStep(5000, min_seconds=600, min_samples=10)])
    both(observe, rollout)
    assert after_a_tick(rollout).state == State.PROGRESSING
    older(601)
    assert after_a_tick(rollout).state == State.SUCCEEDED


def test_it_waits_at_a_gate_and_still_falls_from_there(begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[PlannedStep(5000, min_seconds=0, min_samples=100, gate=True), QUICK], guardrails=ERRORS)
    both(observe, rollout)
    assert (after_a_tick(rollout).state, rollout.pause) == (State.PAUSED, Pause.GATE)
    assert after_a_tick(rollout).state == State.PAUSED
    observe(rollout, Arm.CANARY, 400, error=200)
    observe(rollout, Arm.STABLE, 400)
    assert (after_a_tick(rollout).state, rollout.cause) == (State.ROLLED_BACK, Cause.VERDICT)


def test_a_shadows_failure_ends_it_before_anybody_met_it(begin: Begin, observe: Observe) -> None:
    shadow = PlannedStep(10_000, shadow=True, min_seconds=0, min_samples=100)
    rollout = begin(steps=[shadow, QUICK], guardrails=({"metric": "empty_answers"},))
    observe(rollout, Arm.STABLE, 200, empty=False)
    observe(rollout, Arm.CANARY, 200, empty=True, shadow=True, first_token=None, inter_token=None)
    assert (after_a_tick(rollout).state, rollout.step) == (State.ROLLED_BACK, 0)


def test_samples_are_counted_once_however_often_it_ticks(begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[PlannedStep(5000, min_seconds=3600)], guardrails=ERRORS)
    both(observe, rollout, 30)
    for _ in range(3):
        after_a_tick(rollout)
    assert rollout.current.canary_window["requests"] == 30
    observe(rollout, Arm.CANARY, 5)
    after_a_tick(rollout)
    assert rollout.current.canary_window["requests"] == 35


@pytest.mark.parametrize("state", [State.VALIDATING, State.PROGRESSING, State.PAUSED])
def test_whoever_moves_the_alias_ends_it(adapter: Adapter, begin: Begin, state: str) -> None:
    rollout = begin(at=state)
    move_alias(adapter, "stable", 2, expected=1, actor=SYSTEM)
    move_alias(adapter, "stable", 1, expected=2, actor=SYSTEM)
    assert after_a_tick(rollout).state != State.ROLLED_BACK
    move_alias(adapter, "stable", 2, expected=1, actor=SYSTEM)
    assert (after_a_tick(rollout).state, rollout.cause) == (State.ROLLED_BACK, Cause.ALIAS)


def test_an_alias_that_is_deleted_ends_it(adapter: Adapter, begin: Begin) -> None:
    rollout = begin()
    delete_alias(Alias.objects.get(adapter=adapter), actor=SYSTEM)
    assert (after_a_tick(rollout).state, rollout.cause) == (State.ROLLED_BACK, Cause.ALIAS)


def test_five_errors_in_a_row_trip_without_statistics(begin: Begin, observe: Observe) -> None:
    rollout = begin()
    observe(rollout, Arm.CANARY, 4, error=4)
    assert not services.trip(rollout.pk)
    observe(rollout, Arm.CANARY, 1, error=1)
    assert services.trip(rollout.pk)
    rollout.refresh_from_db()
    assert (rollout.state, rollout.cause, rollout.weight) == (State.ROLLING_BACK, Cause.TRIPWIRE, 0)
    assert not services.trip(rollout.pk)


def test_an_engine_that_fails_both_arms_trips_nothing(begin: Begin, observe: Observe) -> None:
    rollout = begin()
    both(observe, rollout, 5, error=5)
    observe(rollout, Arm.STABLE, 5, error=5)
    assert not services.trip(rollout.pk)


@pytest.mark.django_db(transaction=True)
def test_a_row_that_another_worker_holds_is_left_to_it(begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[STEP])
    both(observe, rollout)
    other = connections.create_connection("default")
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1 FROM rollouts_rollout WHERE id = %s FOR UPDATE", [rollout.pk])
            assert services.tick() == 0
    finally:
        other.close()  # as when that worker is killed
    assert after_a_tick(rollout).state == State.SUCCEEDED


def test_a_worker_that_dies_in_a_tick_leaves_no_half_of_it(begin: Begin, observe: Observe, monkeypatch: Any) -> None:
    rollout = begin(steps=[STEP], guardrails=ERRORS)
    both(observe, rollout)

    def dies(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(services.changes, "record", dies)
        with pytest.raises(SystemExit), transaction.atomic():
            services.tick()
    rollout.refresh_from_db()
    assert (rollout.state, rollout.looks, rollout.current.canary_window) == (State.PROGRESSING, 0, {})
    assert after_a_tick(rollout).state == State.SUCCEEDED
