"""What an evaluation set says of a canary before, and whose it is meanwhile."""

from typing import Any

import pytest
from django.utils import timezone

from audit.services import SYSTEM
from evaluations.errors import SetInUse
from evaluations.models import Evaluation, EvaluationSet
from evaluations.services import cancel_evaluation, create_set, delete_set, request_evaluation
from registry.models import Adapter, Version
from rollouts import services
from rollouts.errors import RolloutInvalid
from rollouts.models import Cause, State
from tenants.models import Tenant
from tests.rollouts.ticking import Begin, after_a_tick

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
