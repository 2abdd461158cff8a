"""What a tick does with a rollout, by what was observed of either arm. The production code judges."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit.models import Event
from audit.services import SYSTEM
from evaluations.errors import SetInUse
from evaluations.models import Evaluation, EvaluationSet
from evaluations.services import cancel_evaluation, create_set, delete_set, request_evaluation
from registry.models import Adapter, Alias, Version
from registry.services import delete_alias, move_alias
from rollouts import services
from rollouts.errors import RolloutInvalid
from rollouts.models import Arm, Cause, Feedback, Pause, Rollout, Sample, State, Step
from rollouts.services import PlannedStep, loading
from rollouts.services.figures import figures
from rollouts.windows import Metric
from tenants.models import Tenant
from tests.rollouts.conftest import QUICK, make_adapter_of

Begin = Callable[..., Rollout]
Observe = Callable[..., None]

ERRORS = ({"metric": "error_rate"},)
STEP = PlannedStep(5000, min_seconds=0, min_samples=100)


def after_a_tick(rollout: Rollout) -> Rollout:
    services.tick()
    rollout.refresh_from_db()
    return rollout


def both(observe: Observe, rollout: Rollout, count: int = 200, **canary: Any) -> None:
    observe(rollout, Arm.STABLE, count)
    observe(rollout, Arm.CANARY, count, **canary)


def older(seconds: int) -> None:
    Step.objects.exclude(entered_at=None).update(entered_at=timezone.now() - timedelta(seconds=seconds))


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


def test_a_days_samples_are_kept_and_those_with_a_thumb_for_longer(
    acme: Tenant, globex: Tenant, begin: Begin, observe: Observe
) -> None:
    rollout = begin(steps=[PlannedStep(5000, min_seconds=3600)], guardrails=ERRORS)
    both(observe, rollout, response="resp_other")
    observe(rollout, Arm.CANARY, 1, response="resp_thumbed")
    after_a_tick(rollout)
    shown = figures(rollout)
    services.give_feedback(acme, "resp_thumbed", up=True)
    Feedback.objects.create(tenant=globex, response="resp_other", up=True, at=timezone.now())
    services.sweep()
    assert Sample.objects.count() == 401
    Sample.objects.update(kept_at=timezone.now() - timedelta(hours=25))
    services.sweep()
    assert Sample.objects.get().response == "resp_thumbed"
    assert (figures(rollout), rollout.current.canary_window["requests"]) == (shown, 201)
    Feedback.objects.update(at=timezone.now() - timedelta(days=15))
    services.sweep()
    assert Sample.objects.get().response == Feedback.objects.get().response  # a step may take longer
    services.abort(rollout, actor=SYSTEM)
    after_a_tick(rollout)
    services.sweep()
    assert Sample.objects.exists()
    Rollout.objects.update(ended_at=timezone.now() - timedelta(days=15))
    services.sweep()
    services.sweep()
    assert not Sample.objects.exists()
    assert not Feedback.objects.exists()


def test_figures_are_added_up_as_samples_come_and_cost_no_reading_of_them(begin: Begin, observe: Observe) -> None:
    rollout = begin(steps=[PlannedStep(5000, min_seconds=3600)])
    both(observe, rollout, 40, error=10, first_token=None)
    observe(rollout, Arm.CANARY, 5, cold=True, first_token=30.0, tokens=200)
    after_a_tick(rollout)
    observe(rollout, Arm.STABLE, 40, inter_token=None, tokens=60)
    after_a_tick(rollout)
    with CaptureQueriesContext(connection) as asked:
        shown = figures(rollout)
    assert not any("rollouts_sample" in query["sql"] for query in asked.captured_queries)
    stable, canary = shown["stable"], shown["canary"]
    told = ("requests", "errors", "cold_loads", "units", "mean_tokens", "mean_first_token")
    assert [stable[name] for name in told[:5]] == [80, 0, 0, 40, 40.0]
    assert [canary[name] for name in told] == [45, 10, 5, 40, (30 * 20 + 5 * 200) / 35, None]
    assert 0.1 < stable["mean_first_token"] < 0.13


SCORE: dict[str, Any] = {"evaluation": "golden", "guardrails": ({"metric": "evaluation_score"},)}


@pytest.fixture
def golden(acme: Tenant) -> EvaluationSet:
    line = b'{"messages": [{"role": "user", "content": "x"}], "expected": "y", "scorer": "exact"}\n'
    return create_set(acme, "golden", line, actor=SYSTEM)


def evaluate(version: Version, known: EvaluationSet, mean: float) -> None:
    Evaluation.objects.filter(version=version).delete()
    score: dict[str, Any] = {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "done": 100}
    settled: dict[str, Any] = {
        "state": "succeeded",
        "finished_at": timezone.now(),
        "creator": "test",
        "model": str(version),
    }
    base = version.adapter.base_model
    Evaluation.objects.create(tenant=known.tenant, set=known, base_model=base, version=version, **score, **settled)


@pytest.mark.parametrize(("mean", "state"), [(0.5, State.ROLLED_BACK), (0.95, State.PRELOADING)])
def test_a_version_that_fails_its_set_meets_no_traffic(
    adapter: Adapter, begin: Begin, golden: EvaluationSet, settings: Any, mean: float, state: str
) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"engine_url": "unix:/nowhere/engine.sock"})
    rollout = begin(at=State.VALIDATING, **SCORE)
    assert after_a_tick(rollout).state == State.VALIDATING
    assert Evaluation.objects.pending().count() == 2  # both were asked for, once
    assert after_a_tick(rollout).state == State.VALIDATING
    assert Evaluation.objects.pending().count() == 2
    evaluate(rollout.stable, golden, 0.94)
    evaluate(rollout.canary, golden, mean)
    assert after_a_tick(rollout).state == state
    assert rollout.cause == (Cause.EVALUATION if state == State.ROLLED_BACK else "")


def test_a_score_spends_the_share_of_alpha_that_it_has_beside_the_other_guardrails(
    begin: Begin, golden: EvaluationSet, settings: Any
) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"engine_url": "unix:/nowhere/engine.sock"})
    others = [{"metric": metric} for metric in ("error_rate", "empty_answers", "cut_answers", "refusals")]
    for watched, state in ((others, State.PRELOADING), ([], State.ROLLED_BACK)):
        score = {"evaluation": "golden", "guardrails": ({"metric": "evaluation_score"}, *watched)}
        rollout = begin(at=State.VALIDATING, override=True, on_new="restart", **score)
        evaluate(rollout.stable, golden, 0.94)
        evaluate(rollout.canary, golden, 0.82)  # beyond the margin with p = 0.023, where alpha is 0.05 in all
        assert after_a_tick(rollout).state == state


def test_an_evaluation_that_is_cancelled_says_nothing_of_the_version(
    adapter: Adapter, begin: Begin, golden: EvaluationSet
) -> None:
    rollout = begin(at=State.VALIDATING, **SCORE)
    after_a_tick(rollout)
    cancel_evaluation(Evaluation.objects.get(version=rollout.canary), actor=SYSTEM)
    assert (after_a_tick(rollout).state, rollout.cause) == (State.ROLLED_BACK, Cause.UNEVALUATED)
    services.create_rollout(adapter, services.Plan(version=2), actor=SYSTEM)


def test_a_set_stays_while_a_rollout_under_way_needs_it(adapter: Adapter, begin: Begin, golden: EvaluationSet) -> None:
    draft = services.create_rollout(adapter, services.Plan(version=2, **SCORE), actor=SYSTEM, start=False)
    rollout = begin(at=State.VALIDATING, **SCORE)
    with pytest.raises(SetInUse, match="rollout"):
        delete_set(golden, actor=SYSTEM)
    services.abort(rollout, actor=SYSTEM)
    assert after_a_tick(rollout).evaluation == "golden"
    delete_set(golden, actor=SYSTEM)
    assert not EvaluationSet.objects.exists()
    with pytest.raises(RolloutInvalid, match="golden"):
        services.start_rollout(draft, actor=SYSTEM)


def test_an_evaluation_that_failed_before_the_rollout_was_started_is_none_of_its_tries(
    adapter: Adapter, begin: Begin, golden: EvaluationSet
) -> None:
    draft = services.create_rollout(adapter, services.Plan(version=2, **SCORE), actor=SYSTEM, start=False)
    cancel_evaluation(request_evaluation(adapter.tenant, golden, "support@v2", actor=SYSTEM), actor=SYSTEM)
    services.start_rollout(draft, actor=SYSTEM)
    assert after_a_tick(draft).state == State.VALIDATING
    assert Evaluation.objects.pending().count() == 2


def test_an_evaluation_that_fails_ends_it(begin: Begin, golden: EvaluationSet) -> None:
    rollout = begin(at=State.VALIDATING, **SCORE)
    after_a_tick(rollout)
    Evaluation.objects.update(state="running")
    Evaluation.objects.update(state="failed", error="no engine")
    assert (after_a_tick(rollout).state, rollout.cause) == (State.ROLLED_BACK, Cause.UNEVALUATED)
    assert "no engine" in rollout.reasons[0]
