"""Knows what the gateway prepares when its process starts, and gives back when it ends."""

import asyncio
import logging

from django.conf import settings

from gateway import engine, meter, prompts, recorder, shadows

logger = logging.getLogger(__name__)

_warming: set[asyncio.Task[None]] = set()


def begin() -> None:
    """Starts loading the served model's tokenizer, so that no request has to wait for it; does not wait itself."""
    _warming.add(asyncio.create_task(_warm()))


async def end() -> None:
    """Cancels every call to the engine that is still under way; keeps what was used and observed until then."""
    for task in _warming:
        task.cancel()
    await shadows.close()
    await engine.close()
    await recorder.close()
    await meter.close()


async def _warm() -> None:
    try:
        await prompts.warm(settings.LORAYARD.base_model)
    except Exception as error:  # the first request will meet it again, and be told
        logger.warning("the tokenizer cannot be loaded yet: %s", type(error).__name__)
