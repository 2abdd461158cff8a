"""Ticks rollouts in tests, at once, with what was observed of either arm."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.utils import timezone

from rollouts import services
from rollouts.models import Arm, Rollout, Step
from rollouts.services import PlannedStep

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
