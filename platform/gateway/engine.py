"""Knows where the engine is and keeps one client of it per event loop."""

import asyncio
from weakref import WeakKeyDictionary

from django.conf import settings

from inference.client import EngineClient

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, EngineClient] = WeakKeyDictionary()


def client() -> EngineClient:
    """The running loop's client. It connects when first used."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = EngineClient(settings.LORAYARD.engine_url, settings.LORAYARD.engine_secret)
    return _clients[loop]


async def close() -> None:
    """Cancels every call of the running loop's client, and forgets it."""
    known = _clients.pop(asyncio.get_running_loop(), None)
    if known is not None:
        await known.close()
