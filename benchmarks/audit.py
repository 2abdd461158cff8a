"""What an audit event adds to a change, how fast writers of one tenant go at once, and how fast a chain is verified.

    python -m benchmarks.audit [--changes 1000] [--writers 50]

On a PostgreSQL of its own, with fsync on, over a Unix socket. A change is a transaction that locks and updates one row;
the same change with and without its event, in turn, so that what else the machine does meets both.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lybench-") as home:
        os.environ |= {"LORAYARD_HOME": home, "DJANGO_SETTINGS_MODULE": "config.settings"}
        sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
        import django

        django.setup()
        _with_database(lambda: _measure(options.changes, options.writers))


def _with_database(work: Callable[[], None]) -> None:
    from django.core.management import call_command
    from django.db import connections

    from config import env, processes
    from config.stack import Stack

    postgres = Stack(env.load()).postgres
    assert postgres is not None, "unset DATABASE_URL: this needs a database of its own"
    postgres.prepare()
    command = postgres.command()
    process = command.popen(stdout=-3, stderr=-3)
    try:
        while not postgres.ready():
            time.sleep(0.1)
        postgres.ensure_database("lorayard")
        call_command("migrate", verbosity=0)
        work()
    finally:
        connections.close_all()
        processes.end(process, command.stop, 10)


def _measure(changes: int, writers: int) -> None:
    from audit import checkpoints
    from audit.services import SYSTEM
    from audit.verification import verify
    from tenants.services import create_tenant

    tenant = create_tenant("bench", "Bench", actor=SYSTEM)
    for recorded in (False, True):
        _change(tenant.pk, 0, recorded)
    plain, audited = [], []
    for number in range(changes):
        plain.append(_timed(lambda n=number: _change(tenant.pk, n, False)))  # type: ignore[misc]
        audited.append(_timed(lambda n=number: _change(tenant.pk, n, True)))  # type: ignore[misc]
    print(f"{'ms':>22} {'median':>8} {'mean':>8} {'p95':>8} {'p99':>8}")
    for name, taken in (("change alone", plain), ("with its event", audited)):
        _row(name, taken)
    _row("what the event adds", [one - other for one, other in zip(audited, plain, strict=True)])
    each = 20
    took = _timed(lambda: _at_once(tenant.pk, writers, each))
    print(f"{writers} writers of one tenant at once: {writers * each / took * 1000:.0f} events/s")
    took = _timed(checkpoints.take)
    print(f"a checkpoint: {took:.1f} ms")
    problems: list[object] = []
    took = _timed(lambda: problems.extend(verify()))
    print(f"verification: {(changes + writers * each) / took * 1000:.0f} events/s, {len(problems)} problems")


def _change(tenant: UUID, number: int, recorded: bool) -> None:
    from django.db import transaction

    from audit.models import Action
    from audit.services import Actor, record
    from tenants.models import Tenant

    actor = Actor("key", "a" * 36, "192.0.2.7", "req_0123456789abcdef01234567", "openai-python/2.0")
    with transaction.atomic():
        row = Tenant.objects.select_for_update(no_key=True).get(pk=tenant)
        row.name = f"Bench {number}"
        row.save(update_fields=["name"])
        if recorded:
            data = {"before": {"name": "Bench"}, "after": {"name": row.name}}
            record(Action.TENANT_CHANGED, tenant=row, actor=actor, target="bench", data=data)


def _at_once(tenant: UUID, writers: int, each: int) -> None:
    from django.db import connection

    def write() -> None:
        for number in range(each):
            _change(tenant, number, True)
        connection.close()

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def _row(name: str, taken: list[float]) -> None:
    cuts = statistics.quantiles(taken, n=100)
    print(f"{name:>22} {cuts[49]:8.2f} {statistics.fmean(taken):8.2f} {cuts[94]:8.2f} {cuts[98]:8.2f}")


if __name__ == "__main__":
    main()
