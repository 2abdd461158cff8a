"""Knows which calls this process has under way and sees each written to the ledger, off the request path.

Where no budget limits a caller, beginning and ending a call cost no query. What ended is written within PAUSE seconds;
what goes on is noted every few seconds with what it has used so far, so that a process that is killed loses no more
than that. While the database is away everything waits, and beyond LIMIT calls it is dropped and counted.
"""

import asyncio
import logging
import time
from copy import copy
from functools import partial
from uuid import UUID
from weakref import WeakKeyDictionary

from django.db import DataError, IntegrityError, ProgrammingError

from gateway import metrics
from gateway.authentication import Caller
from gateway.database import query, query_unhurried
from gateway.exchange import Exchange
from metering import budgets, ledger
from metering.models import Call, Outcome, Purpose
from registry.services import Target

log = logging.getLogger(__name__)

PAUSE = 0.25  # seconds
AWAY = 1.0  # seconds before another attempt
BATCH = 256
LIMIT = 100_000


class Meter:
    """Of one event loop. Its task lives while there is something to write."""

    def __init__(self) -> None:
        self._open: dict[UUID, Call] = {}
        self._ended: list[Call] = []
        self._task: asyncio.Task[None] | None = None
        self._noted = time.monotonic()

    def begin(self, call: Call) -> None:
        self._open[call.pk] = call
        if self._task is None or self._task.done():
            self._noted = time.monotonic()
            self._task = asyncio.create_task(self._work())

    def end(self, call: Call, outcome: Outcome, code: str = "") -> None:
        """Counts once: what is said of a call that is over already is not heard."""
        if self._open.pop(call.pk, None) is None:
            return
        call.outcome, call.code = outcome, code[:64]
        if len(self._ended) >= LIMIT:
            metrics.UNMETERED.inc()
            return
        self._ended.append(call)

    async def close(self) -> None:
        """Writes what is left, if the database is there; what is still under way is cut off with this process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for call in list(self._open.values()):
            self.end(call, Outcome.CANCELLED)
        while self._ended and await self._write():
            pass

    async def _work(self) -> None:
        while self._open or self._ended:
            await asyncio.sleep(PAUSE)
            while self._ended:
                if not await self._write():
                    await asyncio.sleep(AWAY)
                await self._note_in_time()
            await self._note_in_time()

    async def _write(self) -> bool:
        """Whether the oldest batch is in the database now; it stays here if not."""
        batch = self._ended[:BATCH]
        if not await _kept(batch):
            return False
        del self._ended[: len(batch)]
        return True

    async def _note_in_time(self) -> None:
        if time.monotonic() - self._noted < ledger.NOTE_EVERY.total_seconds():
            return
        self._noted = time.monotonic()
        calls = [copy(call) for call in self._open.values()]  # they go on while these are written
        for start in range(0, len(calls), BATCH):
            await _kept(calls[start : start + BATCH])


async def _kept(calls: list[Call]) -> bool:
    """Whether they need no further attempt. A call that the database will never take does not stand before others."""
    try:
        await query_unhurried(ledger.write, calls)
    except (DataError, IntegrityError, ProgrammingError) as error:
        if len(calls) > 1:
            return all([await _kept([call]) for call in calls])
        log.error("a call's usage can't be kept: %s", error)
        metrics.UNMETERED.inc()
    except Exception as error:  # counting must never be what stops a process
        log.warning("usage can't be written now: %s", type(error).__name__)
        return False
    return True


_meters: WeakKeyDictionary[asyncio.AbstractEventLoop, Meter] = WeakKeyDictionary()


async def admit(exchange: Exchange, caller: Caller, target: Target, tokens: int) -> Call:
    """A new call, once there is room for it in every budget that it counts in. tokens: what it can use at most.

    Costs no query where no budget limits the caller. Raises BudgetExceeded.
    """
    call = Call(
        tenant_id=caller.tenant.pk,
        key=caller.key,
        request_id=exchange.id,
        purpose=caller.purpose,
        base=target.base.name,
        adapter=target.adapter or "",
    )
    serve(call, target)
    if caller.rooms:
        await _reserve(call, caller, tokens)
    _meter().begin(call)
    return call


async def _reserve(call: Call, caller: Caller, tokens: int) -> None:
    """A client that leaves meanwhile stops no statement: what it reserves is given back as soon as it is done."""
    taking = asyncio.create_task(query(budgets.reserve, call, caller.rooms, tokens))
    try:
        await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(partial(_give_back, _meter(), call))
        raise


def _give_back(meter: Meter, call: Call, taking: asyncio.Task[None]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        meter.begin(call)
        meter.end(call, Outcome.CANCELLED)


def begin_copy(call: Call, target: Target) -> Call:
    """Of a call's copy for a rollout's canary."""
    names = ("tenant_id", "key", "request_id", "base", "adapter")
    shadow = Call(**{name: getattr(call, name) for name in names}, purpose=Purpose.SHADOW)
    serve(shadow, target)
    _meter().begin(shadow)
    return shadow


def serve(call: Call, target: Target) -> None:
    """This is what serves it, from the beginning."""
    call.version, call.digest = target.version, target.digest
    call.prompt = call.cached = call.completion = 0


def end(call: Call, outcome: Outcome, code: str = "") -> None:
    """However it ended. Again, it changes nothing."""
    _meter().end(call, outcome, code)


async def close() -> None:
    known = _meters.pop(asyncio.get_running_loop(), None)
    if known is not None:
        await known.close()


def _meter() -> Meter:
    return _meters.setdefault(asyncio.get_running_loop(), Meter())
