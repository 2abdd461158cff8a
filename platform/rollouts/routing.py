"""Says which version serves a request, through any rollout under way, and what is to be noted about it.

Asked for every request and remembered nowhere: what is written to a rollout's row holds from the next request on, in
every process. One query more than naming alone; sequences under way finish on the version that they began with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from registry.models import State as VersionState
from registry.services import Target, alias_named, resolve
from rollouts.assignment import Assignment, Units
from rollouts.models import ROUTED, Arm, Rollout
from tenants.models import Tenant


@dataclass(frozen=True)
class Trial:
    """A request's part in a rollout. counted: whether it was assigned by chance, and so says something of an arm.

    fallback: what serves instead, should the canary fail before its first token. shadow: what gets a copy.
    """

    rollout: UUID
    tenant: UUID
    step: int
    arm: Arm
    unit: int
    counted: bool
    schema: dict[str, Any] | None = None
    fallback: Target | None = None
    shadow: Target | None = None


@dataclass(frozen=True)
class Route:
    target: Target
    trial: Trial | None = None


def route(tenant: Tenant, model: str, allowed: Sequence[str], units: Units, wanted: Arm | None = None) -> Route:
    """What serves this request. wanted: the arm that a tester asks for. Raises ModelNotFound."""
    rollout = _rollout(tenant, model)
    target = resolve(tenant, model, allowed)
    if rollout is None or target.version != rollout.stable.number:  # the alias was moved, or is not meant
        return Route(target)
    canary = replace(target, digest=rollout.canary.digest, version=rollout.canary.number)
    assignment = Assignment.of(rollout.salt, units.chosen(rollout.unit))
    arm = wanted or (Arm.CANARY if assignment.within(rollout.weight) else Arm.STABLE)
    copied = wanted is None and arm is Arm.STABLE and assignment.within(rollout.copies)
    trial = Trial(
        rollout=rollout.pk,
        tenant=tenant.pk,
        step=rollout.step,
        arm=arm,
        unit=assignment.fingerprint,
        counted=wanted is None,
        schema=rollout.schema,
        fallback=target if arm is Arm.CANARY else None,
        shadow=canary if copied else None,
    )
    return Route(canary if arm is Arm.CANARY else target, trial)


def _rollout(tenant: Tenant, model: str) -> Rollout | None:
    """The one that the alias is in, if its canary is there to be served.

    Asked for before the alias: should a promotion come between the two, the alias is new, and no longer this one's.
    """
    named = alias_named(tenant, model)
    if named is None:
        return None
    name, alias = named
    rollouts = Rollout.objects.for_tenant(tenant).filter(adapter__name=name, alias=alias, state__in=ROUTED)
    ready = rollouts.filter(canary__state=VersionState.READY)
    return ready.select_related("stable", "canary").first()
