"""Whose turn it is in background work: the tenant's that has had the least of it. Knows lines, never the work.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) over tenants, in seconds of a worker divided by the
tenant's weight. A tenant's next shift starts where its last one ended, or, after it asked for nothing, where the shift
of the one that was served last started: so nobody saves up turns by idling. A shift ends early while others wait.

A task's message says that somebody waits; who is served is decided when a worker is free.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import F
from django.db.models.functions import Greatest

from evaluations import services as evaluations
from jobs.models import Share
from merges import services as merges

Job = tuple[UUID, UUID, float, datetime]  # its id, its tenant's id and weight, and since when it is there


@dataclass(frozen=True)
class Line:
    """One kind of work that is done in turns. `work` runs a job's shift, and asks now and then whether others wait."""

    kind: str
    waiting: Callable[[], Iterable[Job]]
    work: Callable[[UUID, Callable[[], bool]], object]


EVALUATIONS = Line("evaluations", evaluations.waiting, evaluations.run_evaluation)
MERGES = Line("merges", merges.waiting, merges.run_merge)


def serve(line: Line) -> None:
    """Work a shift for the tenant whose turn it is; nothing is done where nobody waits."""
    jobs = list(line.waiting())
    if not jobs:
        return
    starts = _starts(line, {tenant for _, tenant, _, _ in jobs})
    job, tenant, weight, _ = min(jobs, key=lambda waiting: (starts[waiting[1]], waiting[3]))
    with _counted(line, tenant, weight, starts[tenant]):
        line.work(job, lambda: any(other != tenant for _, other, _, _ in line.waiting()))


def _starts(line: Line, tenants: set[UUID]) -> dict[UUID, float]:
    """Where the next shift of each tenant would start."""
    shares = {share.tenant_id: share for share in Share.objects.filter(line=line.kind)}
    now = max((share.start for share in shares.values()), default=0.0)
    return {tenant: max(now, shares[tenant].end) if tenant in shares else now for tenant in tenants}


@contextmanager
def _counted(line: Line, tenant: UUID, weight: float, start: float) -> Iterator[None]:
    """Add the shift to what the tenant has had, however it ends; a killed worker's is not counted."""
    Share.objects.bulk_create(
        [Share(tenant_id=tenant, line=line.kind, start=start, end=start)],
        update_conflicts=True,
        unique_fields=["tenant", "line"],
        update_fields=["start"],
    )
    begun = time.monotonic()
    try:
        yield
    finally:
        end = Greatest(F("end"), start) + (time.monotonic() - begun) / weight
        Share.objects.filter(tenant=tenant, line=line.kind).update(end=end)
