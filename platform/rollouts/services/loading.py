"""Has the engine load canaries, and tells how far it is. Knows no state but the one in which a rollout waits for it."""

import asyncio
import logging
from dataclasses import dataclass
from uuid import UUID

from inference.client import AdapterMissing, AdapterUnavailable, EngineClient, EngineError
from registry.engine import ask
from rollouts.models import Rollout, State

log = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds, for all together; a load that takes longer goes on in the engine, and is looked at again


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine said of a canary. fault: why it can't be loaded; "": it did not say."""

    done: bool
    fault: str = ""


def loads() -> dict[UUID, Load]:
    """Of every rollout that waits for the engine to have its canary. Call it without holding any lock."""
    waiting = Rollout.objects.filter(state=State.PRELOADING)
    digests = dict(waiting.values_list("pk", "canary__digest"))
    if not digests:
        return {}
    return dict(zip(digests, ask(lambda engine: _all(engine, list(digests.values()))), strict=True))


async def _all(engine: EngineClient, digests: list[str]) -> list[Load]:
    return await asyncio.gather(*(_one(engine, digest) for digest in digests))


async def _one(engine: EngineClient, digest: str) -> Load:
    try:
        await engine.preload(digest, timeout=PATIENCE)
    except (AdapterMissing, AdapterUnavailable) as error:
        return Load(False, error.message)
    except EngineError as error:
        log.info("the engine does not say yet whether it can load a canary: %s", error.code)
        return Load(False)
    return Load(True)
