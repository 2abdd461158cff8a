"""Works through an evaluation: asks, scores, writes; in a worker, a shift at a time, so that all have their turn."""

import asyncio
import time
from collections.abc import Callable, Iterator
from statistics import fmean
from uuid import UUID

import httpx
from asgiref.sync import async_to_sync, sync_to_async

from evaluations.asking import Answer, Refused, ask, client
from evaluations.judge import Judge
from evaluations.models import Item, Result, Scorer, State
from evaluations.services import leases
from evaluations.services.leases import Lease

AT_ONCE = 4  # requests; few, so that live traffic finds room in every batch
BEAT = 1.0  # seconds within which a cancellation is noticed
SHIFT = 300.0  # seconds; then another one of the tenant's has its turn
SHORT = 10.0  # seconds of a shift while other tenants wait
STANDSTILL = 120.0  # seconds without an answer after which somebody else may try
SCORING = 120.0  # seconds for all patterns and schemas of a shift

Asked = dict[asyncio.Task[Answer], Item]


def nobody_waits() -> bool:
    return False


def run_evaluation(evaluation_id: UUID, others_wait: Callable[[], bool] = nobody_waits) -> State | None:
    """Work one shift, a short one when `others_wait`.

    The state it settled the evaluation in; None when it was not this worker's, or goes on later.
    """
    lease = leases.claim(evaluation_id)
    if lease is None:
        return None
    try:
        complete = async_to_sync(_work)(lease, others_wait)
    except Refused as refusal:
        return leases.fail(lease, str(refusal))
    if complete:
        return leases.succeed(lease)
    leases.hand_over(lease)
    return None


async def _work(lease: Lease, others_wait: Callable[[], bool]) -> bool:
    """Whether every item has its result. False: the shift is over, or the lease lost. Raises Refused."""
    items = iter(await sync_to_async(_unanswered)(lease))
    begun = answered = time.monotonic()
    asked: Asked = {}
    with Judge(SCORING) as judge:
        async with client(lease.key) as http:
            try:
                while _top_up(asked, items, http, lease):
                    done, _ = await asyncio.wait(asked, timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
                    answered = time.monotonic() if done else answered
                    held = await _write(lease, [(asked.pop(task), task) for task in done], judge)
                    if not held or time.monotonic() > min(begun + SHIFT, answered + STANDSTILL):
                        return False
                    if answered > begun and time.monotonic() > begun + SHORT and await sync_to_async(others_wait)():
                        return False
            finally:
                await _drop(asked)
    return True


def _unanswered(lease: Lease) -> list[Item]:
    evaluation = lease.evaluation
    return list(evaluation.set.items.exclude(results__evaluation=evaluation))


def _top_up(asked: Asked, items: Iterator[Item], http: httpx.AsyncClient, lease: Lease) -> bool:
    """Ask for as many as may be asked at once. False when nothing is left to wait for."""
    while len(asked) < AT_ONCE and (item := next(items, None)) is not None:
        asked[asyncio.create_task(ask(http, lease.evaluation.model, item))] = item
    return bool(asked)


async def _write(lease: Lease, done: list[tuple[Item, asyncio.Task[Answer]]], judge: Judge) -> bool:
    """Score answers and write each at once, or just hold on. False: the lease is lost. Raises Refused."""
    for item, task in done:
        if not await sync_to_async(leases.keep)(lease, [_result(lease, item, task, judge)]):
            return False
    return bool(done) or await sync_to_async(leases.keep)(lease, [])


async def _drop(asked: Asked) -> None:
    """What is still asked for is of no use; leaving ends it in the engine too."""
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


def _result(lease: Lease, item: Item, task: "asyncio.Task[Answer]", judge: Judge) -> Result:
    try:
        answer = task.result()
    except Refused as refusal:
        raise Refused(f"line {item.number}: {refusal}") from None
    result = Result(evaluation=lease.evaluation, item=item, answer=_storable(answer.text), tokens=answer.tokens)
    if item.scorer == Scorer.LOG_LIKELIHOOD:
        result.value = fmean(answer.logprobs)
        return result
    passed, result.note = judge.passes(item.scorer, item.expected, answer.text)
    result.value = float(passed)
    if judge.exhausted:
        raise Refused("its patterns and schemas take too long to evaluate")
    return result


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL."""
    return text.replace("\x00", "\ufffd")
