"""Gathers what either arm did into windows, and trips on hard faults. Knows samples; decides nothing by statistics."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Subquery
from django.utils import timezone

from audit.services import SYSTEM
from rollouts import verdicts, windows
from rollouts.errors import RolloutOver
from rollouts.models import OVER, ROUTED, Arm, Cause, Feedback, Outcome, Rollout, Sample, Step
from rollouts.services.changes import roll_back
from rollouts.services.figures import added
from rollouts.windows import Window
from tenants.isolation import across_every_tenant, within

LAG = timedelta(seconds=2)  # longer than the transaction that keeps a batch of samples
RECENT = 20  # samples of an arm that the tripwire looks at
MOST_THUMBS = 20_000
UNTHUMBED = timedelta(days=1)  # that a sample waits for a thumb; longer than any tick is away
KEPT = timedelta(days=14)  # thumbs, and samples that have one, after their rollout is over
NON_FINITE = "non_finite_output"  # the engine's code for logits that are not numbers

Windows = tuple[Window, Window]


def gather(rollout: Rollout, step: Step) -> Windows:
    """The step's windows, stable's and the canary's, with all that was kept until LAG ago.

    Sums are kept with the step, so that each sample is read once. The caller holds the rollout's row lock.
    """
    horizon = _database_time() - LAG
    new = Sample.objects.filter(rollout=rollout, step=step.number, kept_at__lte=horizon)
    if step.counted_to is not None:
        new = new.filter(kept_at__gt=step.counted_to)
    arms: dict[str, list[Sample]] = {Arm.STABLE: [], Arm.CANARY: []}
    for sample in new.order_by().iterator():
        arms[sample.arm].append(sample)
    stable = Window.from_json(step.stable_window) + Window.of(map(_measured, arms[Arm.STABLE]))
    canary = Window.from_json(step.canary_window) + Window.of(map(_measured, arms[Arm.CANARY]))
    step.stable_window, step.canary_window, step.counted_to = stable.as_json(), canary.as_json(), horizon
    step.sums = {arm: added(step.sums.get(arm, {}), samples) for arm, samples in arms.items()}
    step.save(update_fields=["stable_window", "canary_window", "sums", "counted_to"])
    return stable + _thumbs(rollout, step, Arm.STABLE), canary + _thumbs(rollout, step, Arm.CANARY)


def trip(rollout_id: UUID) -> bool:
    """Roll back at once if the canary's latest requests say so. Called by whoever kept a canary's failed request."""
    with across_every_tenant():  # the caller keeps what it saw of all tenants' requests
        rollout = Rollout.objects.select_related("adapter").filter(pk=rollout_id, state__in=ROUTED).first()
    if rollout is None:
        return False
    with within(rollout.adapter.tenant_id):
        return _trip(rollout)


def _trip(rollout: Rollout) -> bool:
    reason = verdicts.tripped(_recent(rollout, Arm.CANARY), _recent(rollout, Arm.STABLE))
    if reason is None:
        return False
    try:
        with transaction.atomic():
            roll_back(rollout, Cause.TRIPWIRE, [reason], actor=SYSTEM)
    except RolloutOver:
        return False
    return True


def sweep() -> None:
    """Drop samples that were counted long ago, so that there are a day's at most; those with a thumb, which may still
    be turned, some time after their rollout is over. Looks stay."""
    now = timezone.now()
    thumbs = Feedback.objects.filter(tenant=OuterRef("rollout__adapter__tenant"), response=OuterRef("response"))
    Sample.objects.filter(~Exists(thumbs), kept_at__lt=now - UNTHUMBED).delete()
    Sample.objects.filter(rollout__state__in=OVER, rollout__ended_at__lt=now - KEPT).delete()
    held = Sample.objects.filter(rollout__adapter__tenant=OuterRef("tenant"), response=OuterRef("response"))
    Feedback.objects.filter(~Exists(held), at__lt=now - KEPT).delete()


def _measured(sample: Sample) -> windows.Sample:
    whole = sample.outcome == Outcome.OK
    return windows.Sample(
        unit=str(sample.unit),
        error=sample.outcome == Outcome.ERROR,
        first_token=None if sample.cold else sample.first_token,
        waiting=sample.unanswered,
        inter_token=None if sample.cold else sample.inter_token,
        tokens=sample.tokens if whole else None,
        empty=sample.empty,
        cut=sample.finish == "length" if whole else None,
        repetitive=sample.repetitive,
        refused=sample.refusal,
        invalid=None if sample.valid is None else not sample.valid,
    )


def _thumbs(rollout: Rollout, step: Step, arm: Arm) -> Window:
    """Of the step's answers. Read anew each time: there are few, and people change their minds."""
    own = Feedback.objects.for_tenant(rollout.adapter.tenant)
    given = own.filter(response=OuterRef("response"))
    samples = Sample.objects.filter(
        rollout=rollout, step=step.number, arm=arm, shadow=False, response__in=own.values("response")
    )
    thumbs = samples.order_by("-pk").annotate(up=Subquery(given.values("up")[:1])).values_list("unit", "up")
    return Window.of_thumbs((str(unit), up) for unit, up in thumbs[:MOST_THUMBS])


def _recent(rollout: Rollout, arm: Arm) -> list[verdicts.Outcome]:
    """The newest last."""
    own = Sample.objects.filter(rollout=rollout, step=rollout.step, arm=arm)
    newest = own.exclude(outcome=Outcome.ABANDONED).order_by("-kept_at", "-pk")
    return list(_faults(newest[:RECENT]))[::-1]


def _faults(samples: Iterable[Sample]) -> Iterable[verdicts.Outcome]:
    for sample in samples:
        if sample.outcome != Outcome.ERROR:
            yield verdicts.Outcome.FINE
        else:
            yield verdicts.Outcome.NON_FINITE if sample.code == NON_FINITE else verdicts.Outcome.ENGINE_ERROR


def _database_time() -> Any:
    """By the clock that stamps samples, so that no machine's own clock can lose one."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        return cursor.fetchone()[0]
