"""Sends tasks to workers from a thread of its own, so that nobody waits for the broker or holds anything meanwhile.

What can't be sent within PATIENCE is dropped: a task is only ever a hint that there is work, which stands in the
database, where the sweeps find it and ask again (`CELERY_BEAT_SCHEDULE`).
"""

import atexit
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from celery import Celery
from celery.app import app_or_default
from django.db import transaction
from kombu.exceptions import ChannelError
from prometheus_client import Counter

log = logging.getLogger(__name__)

PATIENCE = 15.0  # seconds that a message may wait for the broker
PAUSE = 0.5  # seconds between attempts
LIMIT = 10_000  # messages that wait
LAST = 3.0  # seconds that a process gives to what waits when it ends

UNSENT = Counter("lorayard_tasks_unsent", "Tasks that could not be sent to workers, which sweeps ask for again")


@dataclass(frozen=True)
class Message:
    """A task by its name, and the application whose broker takes it."""

    app: Celery
    task: str
    args: tuple[str, ...] = ()
    countdown: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def publish(self) -> None:
        """Raises what kombu and its transport raise."""
        self.app.signature(self.task, args=self.args, countdown=self.countdown or None).apply_async(retry=False)

    @property
    def late(self) -> bool:
        return time.monotonic() - self.since > PATIENCE


class Sender:
    """The messages of one process, oldest first, and the thread that sends them, which starts with the first."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """As a fork must: it has no thread, and what its parent wants to send is its parent's."""
        self._waiting: deque[Message] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, message: Message) -> None:
        """Returns at once. Beyond LIMIT it is dropped."""
        with self._changed:
            if len(self._waiting) >= LIMIT:
                UNSENT.inc()
                return
            self._waiting.append(message)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="task-sender", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Whether everything was sent or given up within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                message = self._waiting[0]
            if not self._settled(message):
                time.sleep(PAUSE)
                continue
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _settled(self, message: Message) -> bool:
        """Whether it was sent, or is given up."""
        try:
            message.publish()
        except Exception as error:  # whatever a transport raises: the thread must live
            if not message.late:
                return False
            UNSENT.inc()
            log.warning("%s can't be sent to the workers: %s", message.task, error)
        return True


_sender = Sender()


def send(task: str, *args: str, countdown: float = 0.0) -> None:
    """Ask for a worker, soon. Returns at once, whatever the broker does."""
    _sender.put(Message(app_or_default(), task, args, countdown))


def after_commit(task: str, *args: str, countdown: float = 0.0) -> None:
    """Ask for a worker once the transaction is through; at once where there is none."""
    transaction.on_commit(partial(send, task, *args, countdown=countdown), robust=True)


def idle(task: str) -> bool:
    """Whether no message waits in the queue that this task goes to: then whatever is still not begun was lost.

    False where the broker does not answer, since nothing could be sent either.
    """
    app = app_or_default()
    name = app.amqp.router.route({}, task)["queue"].name
    try:
        with app.pool.acquire(block=True, timeout=LAST) as connection:
            return bool(connection.default_channel.queue_declare(name, passive=True).message_count == 0)
    except ChannelError:
        return True  # Redis keeps no empty queue
    except Exception as error:  # whatever a transport raises
        log.warning("the broker can't be asked for its queue %s: %s", name, error)
        return False


def flush(seconds: float = LAST) -> bool:
    """Whether all that this process wanted to send was sent, or given up, within so many seconds."""
    return _sender.flush(seconds)


os.register_at_fork(after_in_child=_sender.begin_anew)
atexit.register(flush)
