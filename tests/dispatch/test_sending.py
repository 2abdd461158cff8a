"""Tasks on their way to workers: nobody waits for the broker, and what it does not take is given up."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import redis
from celery import Celery, current_app
from django.conf import settings

from dispatch import sending
from dispatch.sending import Message, Sender
from tests.processes import wait_for

TASK = "jobs.tasks.revalidate_stale"
QUEUE = "tests-dispatch"


@pytest.fixture
def broker(services: object) -> Iterator[Celery]:
    """An application like ours on a queue of its own, which is empty."""
    app = Celery(broker=current_app.conf.broker_url, set_as_current=False)
    app.conf.update(task_default_queue=QUEUE, broker_transport_options=settings.CELERY_BROKER_TRANSPORT_OPTIONS)
    empty(app)
    yield app
    empty(app)


def empty(app: Celery) -> None:
    with app.connection_for_write() as connection:
        connection.default_channel.client.delete(QUEUE)


def queued(app: Celery) -> int:
    with app.connection_for_write() as connection:
        return int(connection.default_channel.client.llen(QUEUE))


def redis_pid() -> int:
    """Of the Redis that this process' tests use."""
    with redis.Redis.from_url(settings.LORAYARD.redis_url) as client:
        return int(client.info("server")["process_id"])


def test_messages_reach_the_broker(broker: Celery) -> None:
    sender = Sender()
    for _ in range(3):
        sender.put(Message(broker, TASK))
    assert sender.flush(30)
    assert queued(broker) == 3


def test_a_broker_that_hangs_keeps_nobody_waiting_and_gets_the_message_when_it_goes_on(broker: Celery) -> None:
    sender = Sender()
    sender.put(Message(broker, TASK))
    assert sender.flush(30)  # it has a connection
    pid = redis_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        for _ in range(200):
            sender.put(Message(broker, TASK))
        assert time.monotonic() - started < 2.0, "putting waited for the broker"
        assert not sender.flush(3)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert sender.flush(60)
    wait_for(lambda: queued(broker) >= 2, 30, "a message coming through")


def test_what_a_broker_does_not_take_in_time_is_given_up_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sending.log, "warning", lambda text, *facts: said.append(text % facts))
    monkeypatch.setattr(sending, "PATIENCE", 0.1)
    before = sending.UNSENT._value.get()
    sender = Sender()
    sender.put(Message(Celery(broker="redis://127.0.0.1:1/0", set_as_current=False), TASK))
    assert sender.flush(60)
    assert sending.UNSENT._value.get() == before + 1
    wait_for(lambda: any("can't be sent" in text for text in said), 10, "the log saying so")


def test_more_than_may_wait_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "LIMIT", 2)
    monkeypatch.setattr(sending, "PATIENCE", 0.5)
    before = sending.UNSENT._value.get()
    sender = Sender()
    for _ in range(5):
        sender.put(Message(Celery(broker="redis://127.0.0.1:1/0", set_as_current=False), TASK))
    assert sender.flush(60)
    assert sending.UNSENT._value.get() == before + 5
