"""Has the engine answer a few tokens with a version before it is ready, so that one whose numbers overflow never is.

A trial holds no upload up: where the engine is down or busy or holds another base model, or can't bring the adapter to
its device in time, the version becomes ready with a note that says so, and its first request tries it. One trial of a
tenant at a time, and none for a minute after one that took too long: uploads of all tenants share few workers.
"""

from __future__ import annotations

import asyncio
import logging

from django.core.cache import cache

from adapters.errors import Finding, Rejected
from inference.client import EngineBusy, EngineClient, EngineError, Generation, NonFinite, Sampling
from registry import engine
from registry.models import State, Version

log = logging.getLogger(__name__)

PATIENCE = 20.0  # seconds for all of it
START = 10.0  # of them, seconds for a turn
REST = 60  # seconds after a trial that took too long, or that nobody ended
PROMPT = 8  # tokens, from all over the vocabulary
ANSWER = 2
SHARE = "trials"  # pays for them, so that uploads take no turns from requests of their tenant


def try_out(version: Version, digest: str) -> tuple[Finding, ...]:
    """Nothing, or a note that it could not be tried. Its files are in the store. Raises Rejected."""
    base = version.adapter.base_model
    if not base.is_default:
        return (_untried(f"the engine serves another base model than {base.name}"),)
    turn = f"trial:{version.adapter.tenant_id}"
    if not cache.add(turn, True, REST):
        return (_untried("another version of the tenant's is being tried, or just could not be in time"),)
    rest = 0  # at once gone
    try:
        engine.ask(lambda client: _answer(client, _generation(digest, int(base.spec["vocab_size"]))))
    except NonFinite as error:
        _send_away(digest)
        message = (
            "The adapter's weights are finite numbers, but what the model computes with them is not: no request could "
            "be answered. Check its scale (lora_alpha over r) and that training did not diverge."
        )
        raise Rejected.because("non-finite-output", message, expected="finite logits", found="not a number") from error
    except (EngineBusy, TimeoutError):
        rest = REST
        return (_untried("the engine took too long"),)
    except EngineError as error:
        return (_untried(error.message),)
    finally:
        cache.touch(turn, rest)
    return ()


async def _answer(client: EngineClient, generation: Generation) -> None:
    answer = client.generate(generation)
    try:
        async with asyncio.timeout(PATIENCE):
            async for _ in answer:
                pass
    finally:
        await answer.aclose()


def _generation(digest: str, vocabulary: int) -> Generation:
    prompt = [vocabulary * at // PROMPT for at in range(PROMPT)]
    sampling = Sampling(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
    return Generation("trial", prompt, sampling, digest, share=SHARE, salt=f"trial {digest}", start_within=START)


def _send_away(digest: str) -> None:
    """What is rejected needs no room on the device, unless equal files are somebody's ready version."""
    if Version.objects.filter(digest=digest, state=State.READY).exists():
        return
    try:
        engine.ask(lambda client: client.evict(digest))
    except EngineError as error:
        log.info("a rejected version stays with the engine until it needs the room: %s", error)


def _untried(why: str) -> Finding:
    message = f"The version was not tried before it became ready ({why.rstrip('.')}); its first request does that."
    return Finding("not-tried", message, severity="note")
