"""An adapter of acme's with two ready versions, `stable` being the first; nothing is served here."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from audit.services import SYSTEM
from registry.models import Adapter, Alias, BaseModel, State, Version
from rollouts import services
from rollouts.models import Arm, Outcome, Rollout, Sample
from rollouts.models import State as RolloutState
from rollouts.services import Plan, PlannedStep, loading
from tenants.models import Tenant

TIMES = ("first_token", "inter_token")
QUICK = PlannedStep(weight=5000, min_seconds=0, min_samples=0)


def make_adapter_of(tenant: Tenant, name: str = "support", versions: int = 2) -> Adapter:
    base, _ = BaseModel.objects.get_or_create(
        name="tiny", defaults={"source": "/nowhere", "spec": {"context_length": 512}, "is_default": True}
    )
    adapter = Adapter.objects.create(tenant=tenant, name=name, base_model=base)
    for number in range(1, versions + 1):
        digest = f"sha256:{tenant.pk.hex}{number:032x}"
        Version.objects.create(adapter=adapter, number=number, state=State.READY, digest=digest, uploader="test")
    Alias.objects.create(adapter=adapter, name="stable", version=adapter.versions.get(number=1))
    return adapter


@pytest.fixture(autouse=True)
def _no_questions_of_earlier_tests() -> None:
    loading._asked.clear()


@pytest.fixture
def adapter(acme: Tenant) -> Adapter:
    return make_adapter_of(acme)


@pytest.fixture
def begin(adapter: Adapter) -> Callable[..., Rollout]:
    """begin(at=State.PROGRESSING, **plan): a rollout to v2 that is at its first step, as if an engine had loaded it."""

    def begun(*, at: str = RolloutState.PROGRESSING, steps: Iterable[PlannedStep] = (QUICK,), **plan: Any) -> Rollout:
        with transaction.atomic():
            return advanced(at, replace(Plan(version=2), steps=list(steps), **plan))

    def advanced(at: str, wanted: Plan) -> Rollout:
        rollout = services.create_rollout(adapter, wanted, actor=SYSTEM)
        if at == RolloutState.VALIDATING:
            return rollout
        rollout = services.changes.move(rollout, RolloutState.PRELOADING, actor=SYSTEM)
        if at == RolloutState.PRELOADING:
            return rollout
        rollout = services.changes.enter(rollout, rollout.steps.get(number=0), actor=SYSTEM)
        return services.pause(rollout, actor=SYSTEM) if at == RolloutState.PAUSED else rollout

    return begun


@pytest.fixture
def observe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """observe(rollout, "canary", 20, error=5): so many requests of that arm, the first few failed. Times vary."""
    monkeypatch.setattr(services.evidence, "LAG", timedelta(0))

    def seen(rollout: Rollout, arm: str, count: int, *, error: int = 0, **fields: Any) -> None:
        ago = timezone.now() - timedelta(seconds=10)
        offset = 0 if arm == Arm.STABLE else 10**6
        values = {"at": ago, "tokens": 20, "first_token": 0.1, "inter_token": 0.01, **fields}
        Sample.objects.bulk_create(
            Sample(
                rollout=rollout,
                step=rollout.step,
                arm=arm,
                unit=offset + number,
                outcome=Outcome.ERROR if number < error else Outcome.OK,
                code="internal_error" if number < error else "",
                **{**values, **{name: values[name] and values[name] * (1 + number % 7 / 20) for name in TIMES}},
            )
            for number in range(count)
        )

    return seen
