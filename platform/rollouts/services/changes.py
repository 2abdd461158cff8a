"""Changes where a rollout is: by compare-and-set, with its audit event and its webhook, in the caller's transaction."""

from collections.abc import Sequence
from typing import Any

from django.utils import timezone

from audit.models import Action
from audit.services import Actor, record
from dispatch import after_commit
from rollouts.errors import NotNow, RolloutOver
from rollouts.models import FORWARD, OVER, WHOLE, Cause, Pause, Rollout, State, Step
from webhooks.services import emit

TASK = "jobs.tasks.tick_rollouts"
ACTIONS = {
    State.VALIDATING: Action.ROLLOUT_STARTED,
    State.PRELOADING: Action.ROLLOUT_STEPPED,
    State.SHADOWING: Action.ROLLOUT_STEPPED,
    State.PROGRESSING: Action.ROLLOUT_STEPPED,
    State.PAUSED: Action.ROLLOUT_PAUSED,
    State.PROMOTING: Action.ROLLOUT_PROMOTING,
    State.SUCCEEDED: Action.ROLLOUT_SUCCEEDED,
    State.ROLLING_BACK: Action.ROLLOUT_ROLLING_BACK,
    State.ROLLED_BACK: Action.ROLLOUT_ROLLED_BACK,
}


class Lost(Exception):
    """The rollout was moved by somebody else. Whoever comes next starts from where it is now."""


def move(rollout: Rollout, to: State, *, actor: Actor, action: Action | None = None, **changes: Any) -> Rollout:
    """From the state and step that `rollout` shows to another. Raises Lost."""
    now = timezone.now()
    here = Rollout.objects.filter(pk=rollout.pk, state=rollout.state, step=rollout.step)
    if here.update(state=to, entered_at=now, changed_at=now, **changes) != 1:
        raise Lost
    return told(rollout, actor, action or ACTIONS[to])


def enter(rollout: Rollout, step: Step, *, actor: Actor, action: Action = Action.ROLLOUT_STEPPED) -> Rollout:
    """Come to a step, and give the canary what it says. Raises Lost."""
    state = State.SHADOWING if step.shadow else State.PROGRESSING
    shares = {"weight": 0, "copies": step.weight} if step.shadow else {"weight": step.weight, "copies": 0}
    Step.objects.filter(pk=step.pk).update(entered_at=timezone.now())
    return move(rollout, state, actor=actor, action=action, step=step.number, pause=Pause.NONE, reasons=[], **shares)


def go_on(rollout: Rollout, *, actor: Actor, action: Action = Action.ROLLOUT_STEPPED) -> Rollout:
    """To the next step; after the last one to promotion. Raises Lost."""
    following = rollout.steps.filter(number=rollout.step + 1).first()
    if following is not None:
        return enter(rollout, following, actor=actor, action=action)
    return move(rollout, State.PROMOTING, actor=actor, weight=WHOLE, copies=0, pause=Pause.NONE, reasons=[])


def hold(rollout: Rollout, why: Pause, reasons: Sequence[str], *, actor: Actor) -> Rollout:
    """Stay where it is, with what the canary serves, until a person says more. Raises Lost."""
    return move(rollout, State.PAUSED, actor=actor, pause=why, reasons=list(reasons))


def roll_back(rollout: Rollout, cause: Cause, reasons: Sequence[str], *, actor: Actor) -> Rollout:
    """Take every unit from the canary, from whatever state it is in: one row write, which holds from the next request.

    Again, it changes nothing. Raises RolloutOver once it is over, NotNow for a draft.
    """
    now = timezone.now()
    forward = Rollout.objects.filter(pk=rollout.pk, state__in=FORWARD)
    stop = {"state": State.ROLLING_BACK, "weight": 0, "copies": 0, "pause": Pause.NONE}
    won = forward.update(**stop, cause=cause, reasons=list(reasons), entered_at=now, changed_at=now) == 1
    if won:
        return told(rollout, actor, Action.ROLLOUT_ROLLING_BACK)
    current = fresh(rollout)
    if current.state in OVER:
        raise RolloutOver(current.state)
    if current.state == State.DRAFT:
        raise NotNow("be rolled back", current.state)
    return current


def end(rollout: Rollout, to: State, *, actor: Actor, **changes: Any) -> Rollout:
    """Be over, and need nothing any more. Raises Lost."""
    return move(rollout, to, actor=actor, evaluation_set=None, ended_at=timezone.now(), **changes)


def hurry() -> None:
    """Ask for a tick once the transaction is through. Should the queue be down, the next one comes anyway."""
    after_commit(TASK)


def fresh(rollout: Rollout) -> Rollout:
    """As it is now, with all that its events speak of."""
    return Rollout.objects.select_related("adapter__tenant", "stable", "canary").get(pk=rollout.pk)


def told(before: Rollout, actor: Actor, action: Action) -> Rollout:
    """The rollout as it is now, after its audit event was written."""
    rollout = fresh(before)
    data: dict[str, Any] = {
        "rollout": str(rollout.pk),
        "before": {"state": before.state, "step": before.step, "weight": before.weight},
        "after": {"state": rollout.state, "step": rollout.step, "weight": rollout.weight},
        "cause": rollout.cause or rollout.pause,
        "reasons": rollout.reasons,
    }
    tenant = rollout.adapter.tenant
    event = {"rollout": str(rollout.pk), "adapter": rollout.adapter.name, "alias": rollout.alias, **data["after"]}
    emit(tenant, f"rollout.{rollout.state}", {**event, "from": rollout.stable.number, "to": rollout.canary.number})
    record(action, tenant=tenant, actor=actor, target=str(rollout), data=data)
    return rollout
