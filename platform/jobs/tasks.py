"""What workers are asked to do: thin calls into services. Tasks take ids, may run twice, and leave no result.

What beat asks for is `periodic`: that it was done to its end is noted, so that work which has stopped is seen to have.
"""

# mypy: disable-error-code="untyped-decorator"

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any
from uuid import UUID

from celery import shared_task
from django.conf import settings

from audit import checkpoints, retention, verification
from evaluations import services as evaluations
from jobs import ticks, turns
from merges import services as merges
from metering import ledger
from registry import services as registry
from registry.services import blobs
from rollouts import services as rollouts
from webhooks import delivery as webhooks

log = logging.getLogger(__name__)

TIME_LIMIT = 5 * 60  # seconds; below registry.services.validation.STALE
SHIFT_LIMIT = 20 * 60  # seconds; well above evaluations.services.running.SHIFT, below the life of its key


def periodic(**options: Any) -> Callable[[Callable[[], None]], Any]:
    """Makes a task of work that beat asks for. Its kind is the function's name."""

    def task(work: Callable[[], None]) -> Any:
        @wraps(work)
        def noted() -> None:
            work()
            ticks.note(work.__name__)

        return shared_task(name=f"jobs.tasks.{work.__name__}", acks_late=True, **options)(noted)

    return task


@shared_task(name="jobs.tasks.validate_version", acks_late=True, reject_on_worker_lost=True, time_limit=TIME_LIMIT)
def validate_version(version_id: str) -> None:
    registry.validate_version(UUID(version_id))


@periodic()
def revalidate_stale() -> None:
    registry.revalidate_stale()


@periodic()
def sweep_quarantine() -> None:
    registry.sweep_quarantine()


@periodic()
def forget_rejected() -> None:
    registry.forget_rejected()


@shared_task(name="jobs.tasks.collect_blob", acks_late=True)
def collect_blob(digest: str) -> None:
    blobs.collect(digest)


@periodic()
def expire_uploads() -> None:
    registry.expire_uploads()


@periodic()
def collect_unheld() -> None:
    blobs.collect_unheld()


@periodic()
def sweep_blobs() -> None:
    blobs.sweep()


@periodic()
def checkpoint_audit() -> None:
    checkpoints.take()
    checkpoints.publish()


@periodic()
def seal_audit() -> None:
    retention.seal_old()


@shared_task(name="jobs.tasks.run_evaluation", acks_late=True, reject_on_worker_lost=True, time_limit=SHIFT_LIMIT)
def run_evaluation(evaluation_id: str) -> None:
    """Somebody's, not always this one's: whose turn it is `turns` says."""
    turns.serve(turns.EVALUATIONS)


@periodic()
def resume_evaluations() -> None:
    evaluations.resume_evaluations()


@periodic()
def tick_rollouts() -> None:
    rollouts.tick()


@periodic()
def sweep_rollouts() -> None:
    rollouts.sweep()


@shared_task(name="jobs.tasks.release_version", acks_late=True, reject_on_worker_lost=True, time_limit=TIME_LIMIT)
def release_version(version_id: str) -> None:
    """What can't be let go of now, `release_overdue` asks for again."""
    try:
        registry.release_version(UUID(version_id))
    except (registry.NotReleased, OSError) as error:
        log.warning("version %s is not released yet: %s", version_id, error)


@periodic()
def release_overdue() -> None:
    registry.release_overdue()


@periodic(time_limit=TIME_LIMIT)
def hold_pins() -> None:
    registry.hold_pins()


@shared_task(name="jobs.tasks.work_out_comparison", acks_late=True, reject_on_worker_lost=True, time_limit=TIME_LIMIT)
def work_out_comparison(first: str, second: str) -> None:
    registry.work_out_comparison(UUID(first), UUID(second))


@periodic()
def verify_audit() -> None:
    for problem in verification.verify():
        log.critical("the audit chain is broken: %s", problem)


@shared_task(name="jobs.tasks.deliver_webhook", acks_late=True, time_limit=60)
def deliver_webhook(delivery_id: str) -> None:
    webhooks.deliver(UUID(delivery_id))


@periodic()
def deliver_webhooks() -> None:
    webhooks.deliver_due()


@periodic()
def forget_deliveries() -> None:
    webhooks.forget_deliveries()


@periodic()
def tend_usage() -> None:
    ledger.close_lost()
    ledger.sum_up()


@periodic()
def forget_usage() -> None:
    ledger.forget(timedelta(days=settings.LORAYARD.usage_retention_days))


@shared_task(name="jobs.tasks.run_merge", acks_late=True, reject_on_worker_lost=True)
def run_merge(merge_id: str) -> None:
    """Somebody's, not always this one's: whose turn it is `turns` says."""
    turns.serve(turns.MERGES)


@periodic()
def resume_merges() -> None:
    merges.resume_merges()


@periodic()
def tend_merges() -> None:
    merges.expire_merges()
