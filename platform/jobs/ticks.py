"""Knows which periodic work was done to its end and when, and which is overdue; never what the work is.

No clock can hide that work has stopped: what counts is how long its row has stayed the same, by this process' monotonic
clock. What the row says is only where a new process begins to count, and never more than that.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db.models.functions import Now

from jobs.models import Tick

SLACK = 30.0  # seconds beyond two intervals; a process that has just started waits as long before it complains


@dataclass(frozen=True, slots=True)
class Seen:
    """A kind's last end as the database says it, and the moment of our clock that we take it for."""

    at: datetime | None
    moment: float


def note(kind: str) -> None:
    """Work of this kind was done to its end now."""
    tick = Tick(kind=kind, at=Now())
    Tick.objects.bulk_create([tick], update_conflicts=True, unique_fields=["kind"], update_fields=["at"])


def intervals() -> dict[str, float]:
    """Seconds between two turns of each kind."""
    return {_kind(entry["task"]): entry["schedule"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}


class Watch:
    """What one process has seen of the ticks. Any of its threads may look."""

    def __init__(self) -> None:
        self.late: list[str] = []  # at the last look
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}
        self._since = time.monotonic()

    def ages(self) -> dict[str, float]:
        """Seconds since each kind was last done, as far as can be known. Asks the database."""
        rows = {row.kind: (row.at, row.now) for row in Tick.objects.annotate(now=Now())}
        with self._lock:
            return {kind: self._age(kind, rows) for kind in intervals()}

    def overdue(self) -> list[str]:
        """Kinds that should have been done long ago. Asks the database."""
        waits, ages = intervals(), self.ages()
        young = time.monotonic() - self._since < SLACK
        self.late = [] if young else sorted(kind for kind, age in ages.items() if age > 2 * waits[kind] + SLACK)
        return self.late

    def _age(self, kind: str, rows: Mapping[str, tuple[datetime, datetime]]) -> float:
        moment, (at, now) = time.monotonic(), rows.get(kind, (None, None))
        known = self._seen.get(kind)
        if known is None or known.at != at:
            said = (now - at).total_seconds() if at is not None and now is not None else moment - self._since
            known = self._seen[kind] = Seen(at, moment - max(0.0, said))
        return moment - known.moment


def _kind(task: str) -> str:
    return task.rpartition(".")[2]
