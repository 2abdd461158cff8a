"""Notes, beside the request, that a tenant had an adapter brought to the engine (`registry.services.uses`)."""

import asyncio
import time
from uuid import UUID
from weakref import WeakKeyDictionary

from gateway.database import query
from registry.services import Target, note_use

AGAIN = 5.0  # seconds, in which the same use is noted once
MOST = 10_000  # uses that a process knows of
Use = tuple[UUID, str]


class Uses:
    """Of one event loop. An eviction is not noticed: who brings the adapter back within AGAIN notes it later."""

    def __init__(self) -> None:
        self._noted: dict[Use, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, tenant: UUID, digest: str) -> None:
        use, now = (tenant, digest), time.monotonic()
        if now - self._noted.get(use, -AGAIN) < AGAIN:
            return
        if len(self._noted) >= MOST:
            self._noted.clear()
        self._noted[use] = now
        task = asyncio.create_task(query(note_use, tenant, digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_uses: WeakKeyDictionary[asyncio.AbstractEventLoop, Uses] = WeakKeyDictionary()


def put(tenant: UUID, target: Target) -> None:
    """Returns at once."""
    if target.digest:
        _uses.setdefault(asyncio.get_running_loop(), Uses()).put(tenant, target.digest)
