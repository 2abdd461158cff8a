"""Knows how the event loop asks the database: in a few threads, each giving its connection back when the call is done.

Nothing that streams may hold a thread or a connection, so that open streams cost the database nothing. Nobody waits
longer than was promised: a database that hangs is one that is away.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import OperationalError, connections

from tenants.postgresql import patience

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
PATIENCE = 4.0  # seconds that a request waits for the database, for a thread and a connection too
UNHURRIED = 20.0  # seconds for what nobody waits for

_executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-db")


async def query(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function`'s result, from a thread where it may use the ORM, with the tenants in scope that are so here.

    What it returns must need no further queries. Raises OperationalError after PATIENCE.
    """
    return await _within(PATIENCE, partial(function, *args, **kwargs))


async def query_unhurried(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `query`, for what no request waits for: it has UNHURRIED seconds."""
    return await _within(UNHURRIED, partial(function, *args, **kwargs))


async def _within(seconds: float, function: Callable[[], T]) -> T:
    call = partial(copy_context().run, _call, time.monotonic() + seconds, function)
    return await asyncio.get_running_loop().run_in_executor(_executor, call)


def _call(until: float, function: Callable[[], T]) -> T:
    if time.monotonic() > until:
        raise OperationalError("no thread was free in time")
    try:
        with patience.within(until):
            return function()
    finally:
        connections.close_all()
