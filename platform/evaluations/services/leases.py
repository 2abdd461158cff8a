"""Gives one worker at a time an evaluation, and writes what it finds out: under the row's lock, while its lease lasts.

A worker that was killed loses the lease in time; whoever takes over finds every result that was written.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from django.db import transaction
from django.utils import timezone

from apikeys import services as apikeys
from apikeys.models import Scope
from audit.models import Action
from audit.services import SYSTEM, record
from dispatch import over
from evaluations.models import PENDING, Evaluation, Result, State
from evaluations.services.requests import QUEUED, end_key, enqueue
from evaluations.services.scores import score_of

LEASE = timedelta(seconds=8)  # longer than a beat and one answer's scoring
KEY_LIFE = timedelta(minutes=30)  # longer than a shift
ATTEMPTS = 5  # to take it up, with not one new result


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on an evaluation, and the key to ask models with."""

    evaluation: Evaluation
    worker: UUID
    key: str


@transaction.atomic
def claim(evaluation_id: UUID) -> Lease | None:
    """None when it is settled or another worker has it. Given up for good after ATTEMPTS in vain."""
    row = _locked(evaluation_id)
    now = timezone.now()
    if row is None or row.state not in PENDING or _worked_on(row):
        return None
    end_key(row)
    row.state, row.started_at = State.RUNNING, row.started_at or now
    row.worker, row.leased_until, row.attempts = uuid4(), now + LEASE, row.attempts + 1
    if row.attempts > ATTEMPTS:
        row.key = None
        row.save()
        _settle(row, State.FAILED, error="It broke off again and again with nothing done; tell the operator.")
        return None
    adapters = [row.version.adapter.name] if row.version else []
    row.key, plaintext = apikeys.issue(
        row.tenant,
        name=f"evaluation {row.pk}",
        scopes=[Scope.BACKGROUND],
        adapters=adapters,
        expires_at=now + KEY_LIFE,
        actor=SYSTEM,
    )
    row.save()
    return Lease(row, row.worker, plaintext)


@transaction.atomic
def keep(lease: Lease, results: list[Result]) -> bool:
    """Write results, each once however often it is found out, and hold on for longer. False: stop, it is not yours."""
    row = _held(lease)
    if row is None:
        return False
    if results:
        Result.objects.bulk_create(results, ignore_conflicts=True)
        row.done, row.attempts = row.results.count(), 0
    row.leased_until = timezone.now() + LEASE
    row.save(update_fields=["done", "attempts", "leased_until"])
    return True


@transaction.atomic
def hand_over(lease: Lease) -> None:
    """Back into the queue, for whoever's turn it is."""
    row = _held(lease)
    if row is not None:
        row.worker, row.leased_until = None, timezone.now() + QUEUED
        row.save(update_fields=["worker", "leased_until"])
        end_key(row)
        transaction.on_commit(lambda: enqueue(row.pk), robust=True)


@transaction.atomic
def succeed(lease: Lease) -> State | None:
    """Every item has its result: the score follows. None if the evaluation is no longer this worker's."""
    row = _held(lease)
    if row is None:
        return None
    assert row.done == row.set.count
    score = score_of(row)
    row.mean, row.low, row.high = score.mean, score.low, score.high
    return _settle(row, State.SUCCEEDED)


@transaction.atomic
def fail(lease: Lease, error: str) -> State | None:
    row = _held(lease)
    return _settle(row, State.FAILED, error=error) if row is not None else None


def _worked_on(row: Evaluation) -> bool:
    leased = Evaluation.objects.filter(pk=row.pk, worker__isnull=False, leased_until__isnull=False)
    return leased.exclude(over("leased_until", LEASE)).exists()


def _settle(row: Evaluation, state: State, error: str = "") -> State:
    row.state, row.error, row.finished_at = state, error[:500], timezone.now()
    row.worker = row.leased_until = None
    row.save()
    end_key(row)
    succeeded = state is State.SUCCEEDED
    data = {"set": row.set.name, "mean": row.mean, "low": row.low, "high": row.high, "n": row.done}
    action = Action.EVALUATION_SUCCEEDED if succeeded else Action.EVALUATION_FAILED
    told = data if succeeded else {"set": row.set.name, "done": row.done}
    record(action, tenant=row.tenant, actor=SYSTEM, target=row.model, data=told)
    return state


def _held(lease: Lease) -> Evaluation | None:
    row = _locked(lease.evaluation.pk)
    return row if row is not None and row.state == State.RUNNING and row.worker == lease.worker else None


def _locked(evaluation_id: UUID) -> Evaluation | None:
    rows = Evaluation.objects.select_for_update(of=("self",)).select_related("tenant", "set", "version__adapter", "key")
    return rows.filter(pk=evaluation_id).first()
