"""Notes, beside the request, that a tenant had an adapter brought to the engine (`registry.services.uses`).

In a thread of its own, since the cache may hang: no request waits behind it, and what can't be noted soon is not.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID
from weakref import WeakKeyDictionary

from registry.services import Target, note_use

AGAIN = 5.0  # seconds, in which the same use is noted once
MOST = 10_000  # uses that a process knows of
WAITING = 100  # that wait to be noted; more are not

_executor = ThreadPoolExecutor(1, thread_name_prefix="gateway-uses")
Use = tuple[UUID, str]


class Uses:
    """Of one event loop. An eviction is not noticed: who brings the adapter back within AGAIN notes it later."""

    def __init__(self) -> None:
        self._noted: dict[Use, float] = {}
        self._tasks: set[asyncio.Future[None]] = set()

    def put(self, tenant: UUID, digest: str) -> None:
        use, now = (tenant, digest), time.monotonic()
        if now - self._noted.get(use, -AGAIN) < AGAIN or len(self._tasks) >= WAITING:
            return
        if len(self._noted) >= MOST:
            self._noted.clear()
        self._noted[use] = now
        task = asyncio.get_running_loop().run_in_executor(_executor, note_use, tenant, digest)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_uses: WeakKeyDictionary[asyncio.AbstractEventLoop, Uses] = WeakKeyDictionary()


def put(tenant: UUID, target: Target) -> None:
    """Returns at once."""
    if target.digest:
        _uses.setdefault(asyncio.get_running_loop(), Uses()).put(tenant, target.digest)
