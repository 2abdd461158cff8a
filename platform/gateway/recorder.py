"""Knows how observations leave the request path: into a list, and from there in batches into the database.

Putting one costs an append. What is not yet kept when a process is killed is lost: PAUSE seconds' worth, LIMIT
observations at most. While the database is away they wait, and beyond LIMIT they are dropped and counted.
"""

import asyncio
import logging
from weakref import WeakKeyDictionary

from gateway import metrics
from gateway.database import query_unhurried
from rollouts import observations, services
from rollouts.observations import Observation

log = logging.getLogger(__name__)

PAUSE = 0.25  # seconds
AWAY = 1.0  # seconds before another attempt
BATCH = 256
LIMIT = 4096


class Recorder:
    """Of one event loop. Its task lives while there is something to keep."""

    def __init__(self) -> None:
        self._waiting: list[Observation] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, observation: Observation) -> None:
        if len(self._waiting) >= LIMIT:
            metrics.UNSEEN.inc()
            return
        self._waiting.append(observation)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Keeps what is left, if the database is there."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while self._waiting and await self._keep():
            pass

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(PAUSE)
            while self._waiting:
                if not await self._keep():
                    await asyncio.sleep(AWAY)

    async def _keep(self) -> bool:
        """Whether the oldest batch is in the database now; it stays here if not."""
        batch = self._waiting[:BATCH]
        try:
            failed = await query_unhurried(observations.record, batch)
            del self._waiting[: len(batch)]
            for rollout in failed:
                await query_unhurried(services.trip, rollout)
        except Exception as error:  # observing must never be what stops a process
            log.warning("observations can't be kept now: %s", type(error).__name__)
            return False
        return True


_recorders: WeakKeyDictionary[asyncio.AbstractEventLoop, Recorder] = WeakKeyDictionary()


def put(observation: Observation) -> None:
    """Keeps it, soon. The client's leaving and anything that fails later change nothing about that."""
    _recorders.setdefault(asyncio.get_running_loop(), Recorder()).put(observation)


async def close() -> None:
    known = _recorders.pop(asyncio.get_running_loop(), None)
    if known is not None:
        await known.close()
