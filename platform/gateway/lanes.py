"""Knows in which threads texts are worked on, and whose turn it is; knows nothing of what is done with them.

Short texts have threads of their own, so no long one keeps them waiting. Of a tenant one long text is worked on at a
time, so another's waits for one of each tenant at most. What a long text took of the memory is given back.
"""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

T = TypeVar("T")
Abandoned = Callable[[], bool]

LONG = 1 << 15  # characters
THREADS = 2  # of each lane
PAUSE = 1.0  # seconds, after which nobody holds on to a long text any more

_short = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-text")
_long = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-long-text")
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[str, asyncio.Lock]] = WeakKeyDictionary()


async def run(work: Callable[[Abandoned], T], *, characters: int = 0, share: str = "") -> T:
    """What `work` returns, from a thread. It is told whether anybody still waits for it; what has not begun when its
    caller is cancelled never does. share: whose turn a long text takes."""
    if characters < LONG:
        return await _in(_short, work)
    async with _turn(share):
        try:
            return await _in(_long, work)
        finally:
            asyncio.get_running_loop().call_later(PAUSE, _long.submit, _give_back)


async def _in(executor: ThreadPoolExecutor, work: Callable[[Abandoned], T]) -> T:
    gone = threading.Event()
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, work, gone.is_set)
    finally:
        gone.set()


def _turn(share: str) -> asyncio.Lock:
    turns = _turns.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    return turns.setdefault(share, asyncio.Lock())


def _give_back() -> None:
    """glibc keeps what was freed in the middle of its heaps."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
