"""Writes each call once, whatever happens to its client, its engine or its process.

A process notes the calls that it has under way every few seconds, with what they have used so far, and writes what
became of one when it is over. Of a process that was killed the last note is what counts: `close_lost` makes it so.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.utils import timezone
from prometheus_client import Counter

from metering import budgets
from metering.models import Call, Outcome
from tenants.isolation import within

CALLS = Counter("lorayard_metering_calls", "Calls written to the ledger", ("purpose", "outcome"))

NOTE_EVERY = timedelta(seconds=2)
LEASE = timedelta(minutes=2)  # of a call that nobody notes any more
BATCH = 5_000

# Compare and set, for many calls at once: what has ended stays as it ended.
COLUMNS = {
    "id": "uuid",
    "version": "integer",
    "digest": "text",
    "prompt": "bigint",
    "cached": "bigint",
    "completion": "bigint",
    "outcome": "text",
    "code": "text",
    "noted_at": "timestamptz",
}
SET = "UPDATE metering_call AS call SET {} FROM unnest({}) AS told({}) {} RETURNING call.id".format(  # noqa: S608 - ours
    ", ".join(f"{name} = told.{name}" for name in COLUMNS if name != "id"),
    ", ".join(f"%s::{kind}[]" for kind in COLUMNS.values()),
    ", ".join(COLUMNS),
    "WHERE call.id = told.id AND call.outcome = 'open'",
)
SUM = """
WITH fresh AS (
    UPDATE metering_call SET summed = true WHERE id IN (
        SELECT id FROM metering_call WHERE NOT summed AND outcome <> 'open'
        ORDER BY noted_at LIMIT %s FOR UPDATE SKIP LOCKED
    ) RETURNING *
), added AS (
    INSERT INTO metering_dailyusage AS daily
        (tenant_id, day, key, adapter, purpose, requests, failed, prompt, cached, completion)
    SELECT tenant_id, (started_at AT TIME ZONE 'UTC')::date AS day, key, adapter, purpose,
        count(*), count(*) FILTER (WHERE outcome IN ('failed', 'lost')), sum(prompt), sum(cached), sum(completion)
    FROM fresh GROUP BY tenant_id, day, key, adapter, purpose ORDER BY tenant_id, day, key, adapter, purpose
    ON CONFLICT (tenant_id, day, key, adapter, purpose) DO UPDATE SET
        requests = daily.requests + EXCLUDED.requests, failed = daily.failed + EXCLUDED.failed,
        prompt = daily.prompt + EXCLUDED.prompt, cached = daily.cached + EXCLUDED.cached,
        completion = daily.completion + EXCLUDED.completion
)
SELECT count(*) FROM fresh
"""


def write(calls: Sequence[Call]) -> None:
    """Calls as they stand: what those under way have used so far, and how those ended that are over.

    Again, it changes nothing: the first word about an end is the last.
    """
    now = timezone.now()
    for call in calls:
        call.noted_at = now
    with within(*{call.tenant_id for call in calls}), transaction.atomic():
        Call.objects.bulk_create(calls, ignore_conflicts=True)
        _set(calls)
    for call in calls:
        if call.outcome != Outcome.OPEN:
            CALLS.labels(call.purpose, call.outcome).inc()


@transaction.atomic
def close_lost(now: datetime | None = None) -> int:
    """End the calls of processes that died, with what was last noted of them. Returns how many."""
    silent = Call.objects.filter(outcome=Outcome.OPEN, noted_at__lt=(now or timezone.now()) - LEASE)
    lost = list(silent.select_for_update(skip_locked=True)[:BATCH])
    for call in lost:
        call.outcome = Outcome.LOST
        CALLS.labels(call.purpose, call.outcome).inc()
    _set(lost)
    return len(lost)


def sum_up() -> int:
    """Add what ended since to its days' sums. Each call is added once, by whomever. Returns how many."""
    total = 0
    while added := _sum_some():
        total += added
    return total


def forget(older_than: timedelta, now: datetime | None = None) -> int:
    """Delete calls that are long over and in their days' sums, which stay. Returns how many."""
    old = Call.objects.filter(started_at__lt=(now or timezone.now()) - older_than, summed=True)
    return old.delete()[0]


def _set(calls: Sequence[Call]) -> None:
    """Of calls that were open until now and are so no more, the room in their budgets is given back."""
    with connection.cursor() as cursor:
        cursor.execute(SET, [[getattr(call, name) for call in calls] for name in COLUMNS])
        changed = {row[0] for row in cursor.fetchall()}
    budgets.settle(call for call in calls if call.pk in changed and call.outcome != Outcome.OPEN)


def _sum_some() -> int:
    with connection.cursor() as cursor:
        cursor.execute(SUM, [BATCH])
        return int(cursor.fetchone()[0])
