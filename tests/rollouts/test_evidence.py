"""What is kept of samples and thumbs, how long, and what is added up as they come."""

from datetime import timedelta

from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit.services import SYSTEM
from rollouts import services
from rollouts.models import Arm, Feedback, Rollout, Sample
from rollouts.services import PlannedStep
from rollouts.services.figures import figures
from tenants.models import Tenant
from tests.rollouts.ticking import ERRORS, Begin, Observe, after_a_tick, both


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
