"""Notes, beside the request, that a tenant had an adapter brought to the engine (`registry.services.uses`)."""

import asyncio
import logging
import time
from weakref import WeakKeyDictionary

from gateway.authentication import Caller
from gateway.database import query
from registry.services import Target, note_use

AGAIN = 5.0  # seconds, in which the same use is noted once
MOST = 10_000  # uses that a process knows of
Use = tuple[str, str]

log = logging.getLogger(__name__)


class Uses:
    """Of one event loop."""

    def __init__(self) -> None:
        self._noted: dict[Use, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, caller: Caller, digest: str) -> None:
        use, now = (caller.share, digest), time.monotonic()
        if now - self._noted.get(use, -AGAIN) < AGAIN:
            return
        if len(self._noted) >= MOST:
            self._noted.clear()
        self._noted[use] = now
        task = asyncio.create_task(self._note(caller, digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _note(self, caller: Caller, digest: str) -> None:
        try:
            await query(note_use, caller.tenant.pk, digest)
        except Exception as error:  # a cache that is away costs no request
            log.warning("a use can't be noted now: %s", type(error).__name__)


_uses: WeakKeyDictionary[asyncio.AbstractEventLoop, Uses] = WeakKeyDictionary()


def put(caller: Caller, target: Target) -> None:
    """Returns at once."""
    if target.digest:
        _uses.setdefault(asyncio.get_running_loop(), Uses()).put(caller, target.digest)
