"""Knows what the gateway prepares when its process starts, and gives back when it ends."""

import asyncio
import importlib
import logging
from weakref import WeakKeyDictionary

from django.conf import settings

from gateway import engine, meter, prompts, recorder, shadows

logger = logging.getLogger(__name__)

_warming: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[bool]] = WeakKeyDictionary()


def begin() -> asyncio.Task[bool]:
    """Starts preparing whatever the first chat would have to wait for; does not wait itself.

    What failed is begun anew, what is done or under way is not.
    """
    loop = asyncio.get_running_loop()
    task = _warming.get(loop)
    if task is None or (task.done() and (task.cancelled() or not task.result())):
        task = _warming[loop] = loop.create_task(_warm())
    return task


async def prepared() -> bool:
    """Whether a chat would wait for nothing here any more. Waits for what is under way: bound it."""
    return await asyncio.shield(begin())


async def end() -> None:
    """Cancels every call to the engine that is still under way; keeps what was used and observed until then."""
    task = _warming.pop(asyncio.get_running_loop(), None)
    if task is not None:
        task.cancel()
    await shadows.close()
    await engine.close()
    await recorder.close()
    await meter.close()


async def _warm() -> bool:
    """Every view and what it imports, the served model's tokenizer, and its template."""
    try:
        await asyncio.to_thread(importlib.import_module, "gateway.urls")
        await prompts.warm(settings.LORAYARD.base_model)
    except Exception as error:  # a request will meet it again, and be told
        logger.warning("the tokenizer cannot be loaded yet: %s", type(error).__name__)
        return False
    return True
