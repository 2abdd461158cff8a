"""Knows how slowly a body may come in before it is given up; nothing of what is in it or who sends it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

WINDOW = 30.0  # seconds of waiting within which
LEAST = 240 * 1024  # bytes have to come: 8 KiB a second, so that neither silence nor a trickle holds anything
LONGEST = 3600.0  # seconds that any body may take

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class Pace:
    """The time that one body has left. Only waiting for its sender counts, never our own work on what has come."""

    def __init__(self, longest: float = LONGEST) -> None:
        self._left, self._window, self._owed = longest, WINDOW, LEAST

    async def next(self, receive: Receive) -> Mapping[str, Any]:
        """The body's next message. Raises TimeoutError."""
        began = time.monotonic()
        async with asyncio.timeout(min(self._left, self._window)):
            message = await receive()
        waited = time.monotonic() - began
        self._left -= waited
        self._window -= waited
        self._owed -= len(message.get("body", b""))
        if self._owed <= 0:
            self._window, self._owed = WINDOW, LEAST
        return message
