"""Has the engine load canaries, and tells how far it is. Knows no state but the one in which a rollout waits for it.

The engine gives up a load whose asker has left, so a question outlives the tick that asked it: it waits in a thread of
its own, in the one process that ticks, and the next ticks look at it again.
"""

import logging
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass
from uuid import UUID

from inference.client import AdapterFaulty, AdapterMissing, EngineError
from registry.engine import ask
from registry.services import note_use
from rollouts.models import Rollout, State

log = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds that a tick waits, for all together
LONGEST = 60.0  # seconds that one question lasts


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine said of a canary. fault: why it can't be loaded; "": it did not say."""

    done: bool
    fault: str = ""


_asked: dict[str, Future[Load]] = {}


def loads() -> dict[UUID, Load]:
    """Of every rollout that waits for the engine to have its canary. Call it without holding any lock."""
    waiting = Rollout.objects.filter(state=State.PRELOADING)
    rows = list(waiting.values_list("pk", "adapter__tenant", "canary__digest"))
    told = _told({digest for _, _, digest in rows})
    for _, tenant, digest in rows:
        if told[digest].done:
            note_use(tenant, digest)
    return {pk: told[digest] for pk, _, digest in rows}


def _told(digests: set[str]) -> dict[str, Load]:
    for digest in _asked.keys() - digests:
        del _asked[digest]  # nobody wants to know any more
    for digest in digests - _asked.keys():
        _asked[digest] = _question(digest)
    done = wait(_asked.values(), PATIENCE).done
    answered = {digest: _asked.pop(digest) for digest, question in list(_asked.items()) if question in done}
    return {digest: answered[digest].result() if digest in answered else Load(False) for digest in digests}


def _question(digest: str) -> Future[Load]:
    """In a daemon thread: a process that ends waits for none."""
    answer: Future[Load] = Future()

    def put() -> None:
        try:
            answer.set_result(_loaded(digest))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=put, name="rollouts-load", daemon=True).start()
    return answer


def _loaded(digest: str) -> Load:
    try:
        ask(lambda engine: engine.preload(digest, timeout=LONGEST))
    except (AdapterMissing, AdapterFaulty) as error:
        return Load(False, error.message)
    except EngineError as error:
        log.info("the engine does not say yet whether it can load a canary: %s", error.code)
        return Load(False)
    return Load(True)
