"""What people do to a rollout. Each verb says which states it applies to; abort applies to all."""

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Concatenate, ParamSpec, cast

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from audit.models import Action
from audit.services import Actor
from rollouts.errors import NotNow, RolloutOver
from rollouts.models import OVER, WHOLE, Cause, Pause, Rollout, State, Step
from rollouts.services.changes import Lost, end, fresh, go_on, hold, hurry, move, roll_back

P = ParamSpec("P")
Verb = Callable[Concatenate[Rollout, P], Rollout]

RUNNING = (State.SHADOWING, State.PROGRESSING)


def verb(name: str, *states: State) -> Callable[[Verb[P]], Verb[P]]:
    """In one transaction, on the row as it is now, and only from these states. Raises RolloutOver, NotNow."""

    def wrap(function: Verb[P]) -> Verb[P]:
        @wraps(function)
        def done(rollout: Rollout, /, *args: P.args, **kwargs: P.kwargs) -> Rollout:
            with transaction.atomic():
                Rollout.objects.select_for_update(no_key=True).get(pk=rollout.pk)
                rollout = fresh(rollout)
                if rollout.state in OVER:
                    raise RolloutOver(rollout.state)
                if states and rollout.state not in states:
                    raise NotNow(name, rollout.state)
                hurry()
                try:
                    return function(rollout, *args, **kwargs)
                except Lost:
                    raise NotNow(name, fresh(rollout).state) from None

        return cast(Verb[P], done)

    return wrap


@verb("be paused", *RUNNING)
def pause(rollout: Rollout, *, actor: Actor) -> Rollout:
    """Hold: the canary keeps what it serves, and the guardrails stay on guard."""
    return hold(rollout, Pause.PERSON, [], actor=actor)


@verb("be resumed", State.PAUSED)
def resume(rollout: Rollout, *, actor: Actor) -> Rollout:
    """Go on with the step. The time that it was paused is not counted; an inconclusive one has its time again."""
    if rollout.pause == Pause.GATE:
        raise NotNow("be resumed; it waits to be approved", rollout.state)
    step = rollout.current
    paused = timezone.now() - (rollout.entered_at or timezone.now())
    whole = timedelta(seconds=step.seconds(timezone.now()))
    shift = whole if rollout.pause == Pause.INCONCLUSIVE else paused
    Step.objects.filter(pk=step.pk).update(entered_at=F("entered_at") + shift)
    to = State.SHADOWING if step.shadow else State.PROGRESSING
    return move(rollout, to, actor=actor, action=Action.ROLLOUT_RESUMED, pause=Pause.NONE, reasons=[])


@verb("be approved", State.PAUSED)
def approve(rollout: Rollout, *, actor: Actor) -> Rollout:
    """Pass the gate that it waits at."""
    if rollout.pause != Pause.GATE:
        raise NotNow("be approved; it waits at no gate", rollout.state)
    return go_on(rollout, actor=actor, action=Action.ROLLOUT_APPROVED)


@verb("be promoted", *RUNNING, State.PAUSED)
def promote(rollout: Rollout, *, actor: Actor) -> Rollout:
    """Skip what is left of the steps."""
    return move(rollout, State.PROMOTING, actor=actor, weight=WHOLE, copies=0, pause=Pause.NONE, reasons=[])


@verb("be aborted")
def abort(rollout: Rollout, *, actor: Actor, reason: str = "") -> Rollout:
    """Roll back, whatever it is doing. A draft is over at once."""
    reasons = [reason] if reason else []
    if rollout.state == State.DRAFT:
        return end(rollout, State.ROLLED_BACK, actor=actor, cause=Cause.PERSON, reasons=reasons)
    return roll_back(rollout, Cause.PERSON, reasons, actor=actor)
