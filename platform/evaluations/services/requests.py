"""Takes requests to evaluate a model, cancels them, and hands to workers what waits for one."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from apikeys import services as apikeys
from apikeys.models import ApiKey
from audit.models import Action
from audit.services import SYSTEM, Actor, record
from dispatch import SOON, idle, over, send
from evaluations.errors import EvaluationOver, EvaluationUnderWay, TooMany
from evaluations.models import PENDING, Evaluation, EvaluationSet, State
from registry.models import Version
from registry.services import Target, resolve
from tenants.models import Tenant

TASK = "jobs.tasks.run_evaluation"
MOST_PENDING = 20  # evaluations of one tenant that wait or run
QUEUED = timedelta(minutes=10)  # that a request may wait for a worker before another one is asked for


def request_evaluation(
    tenant: Tenant, wanted: EvaluationSet, model: str, *, allowed: Sequence[str] = (), actor: Actor
) -> Evaluation:
    """Have a worker evaluate what `model` names now, after the commit. `allowed`: adapters that the caller may use.

    Raises ModelNotFound, EvaluationUnderWay, TooMany.
    """
    target = resolve(tenant, model, allowed)
    asked = Evaluation(tenant=tenant, set=wanted, base_model=target.base, creator=str(actor))
    asked.version, asked.model = _version(tenant, target), _pinned(tenant, target)
    asked.leased_until = timezone.now() + QUEUED
    with transaction.atomic():
        Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
        if Evaluation.objects.for_tenant(tenant).pending().count() >= MOST_PENDING:
            raise TooMany(f"A tenant may have {MOST_PENDING} evaluations under way at most.")
        try:
            with transaction.atomic():
                asked.save(force_insert=True)
        except IntegrityError as error:
            raise EvaluationUnderWay(f"{asked.model} is being evaluated on this set already.") from error
        data = {"set": wanted.name, "digest": wanted.digest}
        record(Action.EVALUATION_REQUESTED, tenant=tenant, actor=actor, target=asked.model, data=data)
        transaction.on_commit(lambda: enqueue(asked.pk), robust=True)
    return asked


@transaction.atomic
def cancel_evaluation(evaluation: Evaluation, *, actor: Actor) -> Evaluation:
    """Its worker notices within a second and drops what it has in the engine. Raises EvaluationOver."""
    rows = Evaluation.objects.select_for_update(of=("self",)).select_related("tenant", "key", "set")
    row = rows.get(pk=evaluation.pk)
    if row.state not in PENDING:
        raise EvaluationOver(f"The evaluation is {row.state} already.")
    row.state, row.finished_at, row.worker, row.leased_until = State.CANCELLED, timezone.now(), None, None
    row.save(update_fields=["state", "finished_at", "worker", "leased_until"])
    end_key(row)
    data = {"set": row.set.name, "done": row.done}
    record(Action.EVALUATION_CANCELLED, tenant=row.tenant, actor=actor, target=row.model, data=data)
    return row


def resume_evaluations() -> int:
    """Ask for workers for evaluations that lost theirs, or never met one. Returns how many."""
    lost = over("leased_until", QUEUED)
    if idle(TASK):  # while messages wait, one may be this one's
        lost |= Q(worker=None, leased_until__lt=Now() + QUEUED - SOON)
    rows = Evaluation.objects.pending().filter(lost).values_list("pk", flat=True)
    found = [pk for pk in rows if _taken_back(pk, lost)]
    for pk in found:
        enqueue(pk)
    return len(found)


def waiting() -> list[tuple[UUID, UUID, float, datetime]]:
    """The evaluations that no worker has: each with its tenant's id and weight, and when it was requested."""
    free = Evaluation.objects.pending().filter(Q(worker=None) | over("leased_until", QUEUED))
    return list(free.values_list("pk", "tenant_id", "tenant__weight", "created_at"))


def enqueue(evaluation: UUID) -> None:
    """Ask for a worker. Should the queue be down, the evaluation waits for `resume_evaluations`."""
    send(TASK, str(evaluation))


def end_key(evaluation: Evaluation) -> None:
    """The worker's key is of no use to anybody any more."""
    if evaluation.key is not None:
        apikeys.revoke(evaluation.key, actor=SYSTEM)


def asks_with(tenant: Tenant, key: ApiKey) -> bool:
    """Whether the key is one that an evaluation was given to ask models with: no tenant can make such a key."""
    return Evaluation.objects.for_tenant(tenant).filter(key=key).exists()


def _taken_back(pk: UUID, lost: Q) -> bool:
    """Compare and set: of two sweeps one asks."""
    rows = Evaluation.objects.pending().filter(lost, pk=pk)
    return rows.update(worker=None, leased_until=Now() + QUEUED) == 1


def _version(tenant: Tenant, target: Target) -> Version | None:
    if target.adapter is None or target.version is None:
        return None
    return Version.objects.for_tenant(tenant).get(adapter__name=target.adapter, number=target.version)


def _pinned(tenant: Tenant, target: Target) -> str:
    return f"{tenant.slug}/{target.adapter}@v{target.version}" if target.adapter else target.base.name
