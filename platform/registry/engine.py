"""Asks the engine something from code that does not await. Knows where it is; nothing of versions or tenants."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from django.conf import settings

from inference.client import EngineClient

T = TypeVar("T")


def ask(question: Callable[[EngineClient], Awaitable[T]]) -> T:
    """The answer, over a connection of its own. Raises EngineError. Not for a thread with a running event loop."""
    return asyncio.run(_ask(question))


async def _ask(question: Callable[[EngineClient], Awaitable[T]]) -> T:
    client = EngineClient(settings.LORAYARD.engine_url, settings.LORAYARD.engine_secret)
    try:
        return await question(client)
    finally:
        await client.close()
