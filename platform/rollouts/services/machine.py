"""Drives rollouts: each tick takes every one under way as far as it can go now.

A tick is idempotent. It holds the rollout's row lock while it decides and skips a row that another worker holds; a
worker that is killed leaves the row as it was, for the next tick. Nothing counts but what is in the database. It waits
for nobody: the engine is asked for all canaries at once, and what takes longer is looked at by the next tick.
"""

import logging
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from audit.services import SYSTEM
from registry.errors import AliasMoved, VersionNotReady
from registry.models import State as VersionState
from registry.services import move_alias
from registry.services.adapters import locked
from rollouts.models import Cause, Look, Pause, Rollout, State, Step
from rollouts.services.changes import Lost, end, enter, fresh, go_on, hold, hurry, move, roll_back
from rollouts.services.evidence import gather, trip
from rollouts.services.loading import Load, loads
from rollouts.services.scores import have_made, scored, scores
from rollouts.verdicts import Guardrail, Kind, Verdict, decide
from rollouts.windows import Window

log = logging.getLogger(__name__)

MOVES = 6  # of one rollout in one tick at most
PRELOAD_PATIENCE = timedelta(minutes=10)


def tick() -> int:
    """Takes every rollout under way as far as it can go now. Returns the moves. One that fails stops no other."""
    moves, loaded = 0, loads()
    for rollout in list(Rollout.objects.active().order_by("changed_at").values_list("pk", flat=True)):
        try:
            moves += next(count for count in range(MOVES + 1) if count == MOVES or not advance(rollout, loaded))
        except Exception:
            log.exception("a rollout could not be taken on")
    return moves


def advance(rollout_id: UUID, loaded: Mapping[UUID, Load]) -> bool:
    """One rollout, as far as one transaction takes it. Returns whether it moved."""
    trip(rollout_id)
    with transaction.atomic():
        rollout = _held(rollout_id)
        if rollout is None:
            return False
        before = (rollout.state, rollout.step)
        try:
            _take_on(rollout, loaded.get(rollout_id))
        except Lost:
            return False
        after = fresh(rollout)
        return (after.state, after.step) != before


def _held(rollout_id: UUID) -> Rollout | None:
    """The row, locked until the transaction ends; None when it is over or another worker is at it.

    Whoever moves the alias locks the adapter first, and so does this where it is to be moved. One that has come to
    that only since it was looked at is left to the next tick.
    """
    plain = Rollout.objects.select_related("adapter").filter(pk=rollout_id).first()
    promoting = plain is not None and plain.state == State.PROMOTING
    if plain is not None and promoting:
        locked(plain.adapter)
    free = Rollout.objects.active().select_for_update(skip_locked=True, no_key=True).filter(pk=rollout_id).first()
    if free is None or (free.state == State.PROMOTING and not promoting):
        return None
    return fresh(free)


def _take_on(rollout: Rollout, load: Load | None) -> None:
    if rollout.state == State.ROLLING_BACK:
        end(rollout, State.ROLLED_BACK, actor=SYSTEM)
        return
    if hindrance := _hindrance(rollout):
        cause, reason = hindrance
        roll_back(rollout, cause, [reason], actor=SYSTEM)
        return
    match rollout.state:
        case State.VALIDATING:
            _validate(rollout)
        case State.PRELOADING:
            _leave_preloading(rollout, load)
        case State.SHADOWING | State.PROGRESSING:
            _observe(rollout)
        case State.PAUSED:
            _watch(rollout)
        case State.PROMOTING:
            _promote(rollout)


def _hindrance(rollout: Rollout) -> tuple[Cause, str] | None:
    """What makes going on senseless: the alias was moved under it, or a version is gone."""
    alias = rollout.adapter.aliases.filter(name=rollout.alias).first()
    if alias is None or alias.version_id != rollout.stable_id:
        return Cause.ALIAS, f"The alias {rollout.alias!r} was moved or deleted by somebody else."
    if rollout.canary.state != VersionState.READY:
        return Cause.VERSION, f"v{rollout.canary.number} is {rollout.canary.state}."
    return None


def _validate(rollout: Rollout) -> None:
    """Past the evaluation set, if it has one. A score that can't tell yet is left to the steps' verdicts."""
    if rollout.evaluation:
        if None in scores(rollout):
            if problem := have_made(rollout):
                roll_back(rollout, Cause.UNEVALUATED, [problem], actor=SYSTEM)
            return
        nothing = scored(rollout, (Window(), Window()))
        verdict = decide(guardrails(rollout), *nothing, look=0, steps=rollout.steps.count(), samples=0)
        if verdict.kind is Kind.FAILURE:
            _keep(rollout, verdict)
            roll_back(rollout, Cause.EVALUATION, verdict.reasons, actor=SYSTEM)
            return
    hurry()
    move(rollout, State.PRELOADING, actor=SYSTEM)


def _leave_preloading(rollout: Rollout, load: Load | None) -> None:
    if load is not None and load.done:
        enter(rollout, rollout.steps.get(number=0), actor=SYSTEM)
    elif timezone.now() - (rollout.entered_at or timezone.now()) > PRELOAD_PATIENCE:
        fault = load.fault if load is not None else ""
        reason = f"v{rollout.canary.number} could not be loaded: {fault or 'the engine did not answer in time.'}"
        roll_back(rollout, Cause.PRELOAD if fault else Cause.ENGINE, [reason], actor=SYSTEM)


def _observe(rollout: Rollout) -> None:
    """Compare the arms, and go where the verdict leads: back, on, or on hold when time is up."""
    step, verdict = _look(rollout)
    elapsed = step.seconds(timezone.now())
    if verdict.kind is Kind.FAILURE:
        _keep(rollout, verdict)
        roll_back(rollout, Cause.VERDICT, verdict.reasons, actor=SYSTEM)
    elif verdict.kind is Kind.SUCCESS and elapsed >= step.min_seconds:
        _keep(rollout, verdict)
        if step.gate:
            hold(rollout, Pause.GATE, ["A person has to approve."], actor=SYSTEM)
        else:
            go_on(rollout, actor=SYSTEM)
    elif step.max_seconds is not None and elapsed >= step.max_seconds:
        _keep(rollout, verdict)
        hold(rollout, Pause.INCONCLUSIVE, verdict.reasons or ["The step's time is up."], actor=SYSTEM)


def _watch(rollout: Rollout) -> None:
    """On hold nothing but harm moves it."""
    _, verdict = _look(rollout)
    if verdict.kind is Kind.FAILURE:
        _keep(rollout, verdict)
        roll_back(rollout, Cause.VERDICT, verdict.reasons, actor=SYSTEM)


def _promote(rollout: Rollout) -> None:
    try:
        with transaction.atomic():
            move_alias(
                rollout.adapter, rollout.alias, rollout.canary.number, expected=rollout.stable.number, actor=SYSTEM
            )
    except (AliasMoved, VersionNotReady) as error:
        roll_back(rollout, Cause.ALIAS, [str(error)], actor=SYSTEM)
        return
    end(rollout, State.SUCCEEDED, actor=SYSTEM, weight=0, copies=0)


def _look(rollout: Rollout) -> tuple[Step, Verdict]:
    """The step and what is to be said of it now. A look that spent of alpha is kept."""
    step = rollout.current
    stable, canary = scored(rollout, gather(rollout, step))
    verdict = decide(
        guardrails(rollout),
        stable,
        canary,
        look=step.look,
        steps=rollout.steps.count(),
        samples=step.min_samples,
        weight=None if step.shadow else step.weight,
    )
    if verdict.look != step.look:
        Step.objects.filter(pk=step.pk).update(look=verdict.look)
        _keep(rollout, verdict)
    return step, verdict


def _keep(rollout: Rollout, verdict: Verdict) -> None:
    """Into the history, unless the last entry says the same."""
    told = verdict.as_json()
    last = rollout.history.order_by("-number").first()
    if last is not None and (last.step, last.figures) == (rollout.step, told):
        return
    number = (last.number if last else 0) + 1
    Look.objects.create(
        rollout=rollout,
        step=rollout.step,
        number=number,
        kind=verdict.kind.value,
        reasons=list(verdict.reasons),
        figures=told,
        at=timezone.now(),
    )
    Rollout.objects.filter(pk=rollout.pk).update(looks=number)


def guardrails(rollout: Rollout) -> list[Guardrail]:
    return [Guardrail.parse(data) for data in rollout.guardrails]
