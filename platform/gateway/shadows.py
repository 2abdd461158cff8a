"""Knows how a copy of a request goes to a rollout's canary: after the live answer, behind everybody, for no one.

A copy starts when its live answer is complete, in a share of its own with a small weight, so it is never billed to the
tenant's turns. At most PLACES are under way in a process and none waits for a place: what finds none is not copied.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from gateway import engine, meter, metrics, recorder, uses
from gateway.errors import OF_A_VERSION
from inference.client import Delta, EngineBusy, EngineDown, EngineError, Event, Finished, Generation, Started
from metering.models import Call, Outcome
from rollouts.models import Arm
from rollouts.observations import Observation
from rollouts.routing import Trial

PLACES = 4
WEIGHT = 0.1  # of the tenant's
PRIORITY = 100  # the smaller goes first
START_WITHIN = 5.0  # seconds
LONGEST = 60.0  # seconds

_under_way: set[asyncio.Task[None]] = set()


def send(trial: Trial, sequences: Sequence[Generation], call: Call) -> None:
    """Copies the request's first sequence to the canary, if there is a place. Returns at once. call: the live one."""
    if trial.shadow is None or not sequences:
        return
    if len(_under_way) >= PLACES:
        metrics.SHADOWS.labels("no place").inc()
        return
    uses.put(call.tenant_id, trial.shadow)
    copied = meter.begin_copy(call, trial.shadow)
    task = asyncio.create_task(_run(trial, _copy(sequences[0], trial.shadow.digest), copied))
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)


async def close() -> None:
    tasks = list(_under_way)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _copy(live: Generation, digest: str) -> Generation:
    return replace(
        live,
        digest=digest,
        share=f"shadow:{live.share}",
        weight=live.weight * WEIGHT,
        priority=PRIORITY,
        start_within=START_WITHIN,
    )


async def _run(trial: Trial, generation: Generation, call: Call) -> None:
    seen = Observation(trial, Arm.CANARY, shadow=True)
    outcome, code = Outcome.CANCELLED, ""
    answer = engine.client().generate(generation)
    try:
        async with asyncio.timeout(LONGEST), contextlib.aclosing(answer):
            async for event in answer:
                _hear(seen, event, call)
        outcome = Outcome.FINISHED
    except (EngineBusy, EngineDown, TimeoutError):
        metrics.SHADOWS.labels("too busy").inc()
        return
    except EngineError as error:
        outcome, code = Outcome.FAILED, error.code
        if not isinstance(error, OF_A_VERSION):
            metrics.SHADOWS.labels("failed").inc()
            return
        seen.fail(error.code)
    finally:
        call.completion = answer.made
        meter.end(call, outcome, code)
    metrics.SHADOWS.labels(seen.outcome.value).inc()
    recorder.put(seen)


def _hear(seen: Observation, event: Event, call: Call) -> None:
    match event:
        case Started():
            seen.cold = event.cold
            call.prompt, call.cached = event.prompt_tokens, event.cached_tokens
        case Delta():
            seen.hear(event.text, event.tokens)
        case Finished():
            seen.finished(event.reason)
