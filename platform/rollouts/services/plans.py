"""Makes rollouts from plans, and starts them. A plan that makes no sense is refused before anything is written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django.db import transaction
from django.utils import timezone
from jsonschema.exceptions import SchemaError

from audit.models import Action
from audit.services import Actor, record
from evaluations.models import EvaluationSet
from registry.errors import AliasMoved, VersionNotReady
from registry.models import STABLE, Adapter, Version
from registry.models import State as VersionState
from registry.services.adapters import locked
from rollouts.errors import NotNow, RolledBackBefore, RolloutActive, RolloutInvalid
from rollouts.models import NOT_ITS_FAULT, WHOLE, Cause, OnNew, Rollout, State, Step, Unit
from rollouts.observations import checked_schema
from rollouts.services.changes import end, fresh, hurry, move, roll_back
from rollouts.verdicts import Guardrail, InvalidGuardrail
from rollouts.windows import Metric

MOST_STEPS = 20
MOST_GUARDRAILS = 20


@dataclass(frozen=True)
class PlannedStep:
    """weight: of 10,000 units."""

    weight: int
    shadow: bool = False
    min_seconds: int = 300
    min_samples: int = 100
    max_seconds: int | None = None
    gate: bool = False


USUAL = tuple(PlannedStep(weight) for weight in (100, 500, 2500, 5000))


@dataclass(frozen=True)
class Plan:
    """version: the number of the one to move the alias to. evaluation: the set it must pass first; "": none."""

    version: int
    alias: str = STABLE
    steps: Sequence[PlannedStep] = USUAL
    guardrails: Sequence[dict[str, Any]] = ()
    schema: dict[str, Any] | None = None
    evaluation: str = ""
    unit: str = Unit.AUTO
    on_new: str = OnNew.REFUSE
    override: bool = False

    def check(self) -> None:
        """Raises RolloutInvalid."""
        _check_steps(self.steps)
        if self.schema is not None:
            _check_schema(self.schema)
        watched = [guardrail.metric for guardrail in self.parsed()]
        if len(set(watched)) != len(watched):
            raise RolloutInvalid("A metric can have one guardrail only.", param="guardrails")
        if Metric.SCHEMA in watched and self.schema is None:
            raise RolloutInvalid("The guardrail 'schema_validity' needs a 'schema'.", param="schema")
        if (Metric.EVALUATION in watched) != bool(self.evaluation):
            raise RolloutInvalid(
                "An evaluation set and the guardrail 'evaluation_score' go together.", param="evaluation"
            )

    def parsed(self) -> list[Guardrail]:
        if len(self.guardrails) > MOST_GUARDRAILS:
            raise RolloutInvalid(f"There may be {MOST_GUARDRAILS} guardrails at most.", param="guardrails")
        try:
            return [Guardrail.parse(data) for data in self.guardrails]
        except InvalidGuardrail as error:
            raise RolloutInvalid(str(error), param="guardrails") from error


@transaction.atomic
def create_rollout(adapter: Adapter, plan: Plan, *, actor: Actor, start: bool = True) -> Rollout:
    """A rollout of the alias to the planned version; under way at once, or a draft.

    Raises RolloutInvalid, VersionNotReady, AliasMoved when there is no such alias, RolledBackBefore unless the plan
    overrides it, and RolloutActive unless the one under way gives way to new ones.
    """
    plan.check()
    adapter = locked(adapter)
    stable, canary = _ends(adapter, plan)
    known = _evaluation_set(adapter, plan.evaluation)
    if start:
        _clear_way(adapter, plan.alias, canary, actor)
    _check_retry(adapter, canary, plan.override)
    rollout = _saved(adapter, stable, canary, plan, actor)
    record(
        Action.ROLLOUT_CREATED,
        tenant=adapter.tenant,
        actor=actor,
        target=str(rollout),
        data={"rollout": str(rollout.pk), "from": stable.number, "to": canary.number, "override": plan.override},
    )
    return _started(rollout, known, actor) if start else rollout


@transaction.atomic
def start_rollout(rollout: Rollout, *, actor: Actor) -> Rollout:
    """Set a draft under way.

    Raises NotNow, RolloutActive, RolledBackBefore, RolloutInvalid without its evaluation set, and AliasMoved since it
    was drafted.
    """
    adapter = locked(rollout.adapter)
    Rollout.objects.select_for_update(no_key=True).get(pk=rollout.pk)
    rollout = fresh(rollout)
    if rollout.state != State.DRAFT:
        raise NotNow("be started", rollout.state)
    stable = _aliased(adapter, rollout.alias)
    if stable is None or stable.pk != rollout.stable_id:
        raise AliasMoved(rollout.alias, stable.number if stable else None)
    known = _evaluation_set(adapter, rollout.evaluation)
    _clear_way(adapter, rollout.alias, rollout.canary, actor)
    _check_retry(adapter, rollout.canary, rollout.override)
    return _started(rollout, known, actor)


def _started(rollout: Rollout, known: EvaluationSet | None, actor: Actor) -> Rollout:
    """The way is clear, and the adapter's lock keeps it so."""
    hurry()
    return move(rollout, State.VALIDATING, actor=actor, started_at=timezone.now(), evaluation_set=known)


def _clear_way(adapter: Adapter, alias: str, canary: Version, actor: Actor) -> None:
    """End what is under way on the alias, if it gives way. Raises RolloutActive.

    Its row is locked before anything is recorded: a tick that holds it will want the audit chain.
    """
    under_way = Rollout.objects.active().filter(adapter=adapter, alias=alias)
    locked_row = under_way.select_for_update(no_key=True).first()
    if locked_row is None:
        return
    active = fresh(locked_row)
    if active.on_new != OnNew.RESTART:
        raise RolloutActive(alias)
    if active.state != State.ROLLING_BACK:
        reasons = [f"A new rollout to v{canary.number} took its place."]
        active = roll_back(active, Cause.SUPERSEDED, reasons, actor=actor)
    end(active, State.ROLLED_BACK, actor=actor)


def _evaluation_set(adapter: Adapter, name: str) -> EvaluationSet | None:
    """The tenant's set of this name, kept from being deleted until the transaction ends. Raises RolloutInvalid."""
    if not name:
        return None
    own = EvaluationSet.objects.for_tenant(adapter.tenant).select_for_update(no_key=True)
    known = own.filter(name=name).first()
    if known is None:
        raise RolloutInvalid(f"There is no evaluation set {name!r}.", param="evaluation")
    return known


def _saved(adapter: Adapter, stable: Version, canary: Version, plan: Plan, actor: Actor) -> Rollout:
    rollout = Rollout(
        adapter=adapter,
        alias=plan.alias,
        stable=stable,
        canary=canary,
        unit=plan.unit,
        on_new=plan.on_new,
        guardrails=[guardrail.as_json() for guardrail in plan.parsed()],
        schema=plan.schema,
        evaluation=plan.evaluation,
        override=plan.override,
        maker=str(actor),
    )
    rollout.clean_fields()
    rollout.save(force_insert=True)
    steps = [Step(rollout=rollout, number=number, **asdict(step)) for number, step in enumerate(plan.steps)]
    Step.objects.bulk_create(steps)
    return rollout


def _ends(adapter: Adapter, plan: Plan) -> tuple[Version, Version]:
    """Stable and canary. Raises VersionNotReady, AliasMoved, RolloutInvalid."""
    canary = adapter.versions.filter(number=plan.version, state=VersionState.READY).first()
    if canary is None:
        raise VersionNotReady(f"{adapter.name} has no ready version v{plan.version}.")
    stable = _aliased(adapter, plan.alias)
    if stable is None:
        raise AliasMoved(plan.alias, None)
    if stable.pk == canary.pk:
        raise RolloutInvalid(f"The alias {plan.alias!r} points to v{plan.version} already.", param="version")
    return stable, canary


def _aliased(adapter: Adapter, alias: str) -> Version | None:
    named = adapter.aliases.select_related("version").filter(name=alias).first()
    return named.version if named else None


def _check_retry(adapter: Adapter, canary: Version, override: bool) -> None:
    """Raises RolledBackBefore. The same files by another number are the same version."""
    back = (State.ROLLING_BACK, State.ROLLED_BACK)
    before = Rollout.objects.filter(adapter=adapter, canary__digest=canary.digest, state__in=back)
    failed = before.exclude(started_at=None).exclude(cause__in=NOT_ITS_FAULT)
    if failed.exists() and not override:
        raise RolledBackBefore(canary.number)


def _check_steps(steps: Sequence[PlannedStep]) -> None:
    if not 0 < len(steps) <= MOST_STEPS:
        raise RolloutInvalid(f"A rollout has 1 to {MOST_STEPS} steps.", param="steps")
    if any(step.shadow for step in steps[1:]):
        raise RolloutInvalid("Only the first step can be a shadow step.", param="steps")
    weights = [step.weight for step in steps if not step.shadow]
    if not weights:
        raise RolloutInvalid("A step that the canary serves in is missing.", param="steps")
    if weights != sorted(weights) or not all(0 < step.weight <= WHOLE for step in steps):
        raise RolloutInvalid("Weights are above 0 and up to 100 %, and never shrink.", param="steps")
    if any(step.max_seconds is not None and step.max_seconds < step.min_seconds for step in steps):
        raise RolloutInvalid("A step's longest duration can't be below its shortest.", param="steps")


def _check_schema(schema: dict[str, Any]) -> None:
    try:
        checked_schema(schema)
    except (ValueError, SchemaError, RecursionError) as error:
        told = error.message if isinstance(error, SchemaError) else str(error)
        raise RolloutInvalid(f"The schema can't be used: {told[:200]}.", param="schema") from error
