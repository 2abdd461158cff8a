"""A tenant's endpoints are told of each state that one of its rollouts really enters, and nobody else's are."""

from collections.abc import Callable

from audit.services import SYSTEM
from rollouts import services
from rollouts.models import Arm, Rollout, State
from rollouts.services import PlannedStep
from tenants.models import Tenant
from tests.webhooks.told import listen
from webhooks.models import Delivery

Begin = Callable[..., Rollout]
STEP = PlannedStep(5000, min_seconds=0, min_samples=100, gate=True)


def test_each_state_on_the_way_to_the_alias_is_told(
    acme: Tenant, globex: Tenant, begin: Begin, observe: Callable[..., None]
) -> None:
    told = listen(acme, globex)
    rollout = begin(steps=[STEP], guardrails=({"metric": "error_rate"},))
    observe(rollout, Arm.STABLE, 200)
    observe(rollout, Arm.CANARY, 200)
    services.tick()
    rollout.refresh_from_db()
    services.approve(rollout, actor=SYSTEM)
    services.tick()
    states = ["validating", "preloading", "progressing", "paused", "promoting"]
    assert told(acme) == [*(f"rollout.{state}" for state in states), "alias.moved", "rollout.succeeded"]
    assert told(globex) == []
    last = Delivery.objects.get(event="rollout.succeeded").data
    assert (last["rollout"], last["adapter"], last["state"], last["to"]) == (str(rollout.pk), "support", "succeeded", 2)


def test_a_rollback_is_told_to_those_who_listen_to_it(acme: Tenant, globex: Tenant, begin: Begin) -> None:
    told = listen(acme, globex, to="rollout.rolled_back")
    rollout = begin(at=State.PROGRESSING)
    services.abort(rollout, actor=SYSTEM)
    services.tick()
    assert told(acme) == ["rollout.rolled_back"]
    assert told(globex) == []
