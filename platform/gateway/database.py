"""Knows how the event loop asks the database: in a few threads, each giving its connection back when the call is done.

Nothing that streams may hold a thread or a connection, so that open streams cost the database nothing.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import connections

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8

_executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-db")


async def query(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function`'s result, from a thread where it may use the ORM, with the tenants in scope that are so here.

    What it returns must need no further queries.
    """
    call = partial(copy_context().run, _call, partial(function, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(_executor, call)


def _call(function: Callable[[], T]) -> T:
    try:
        return function()
    finally:
        connections.close_all()
