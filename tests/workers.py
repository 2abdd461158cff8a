"""Runs a real Celery worker in a thread of this process."""

from collections.abc import Iterator
from contextlib import contextmanager

from celery.contrib.testing.worker import start_worker

from config.celery import app


@contextmanager
def working(*queues: str) -> Iterator[None]:
    """A worker on these queues, which it finds empty.

    They are always named: Celery's app remembers which queues the last worker in the process was for, and a worker that
    names none would take those, and leave all others' tasks where they are.
    """
    app.amqp.queues.select(queues)
    app.control.purge()
    with start_worker(app, perform_ping_check=False, pool="solo", queues=queues, shutdown_timeout=60):
        yield
