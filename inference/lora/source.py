"""Knows the way of an adapter's files to the host: artifact store, local disk, host memory; never slots or requests."""

import errno
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.errors import Corrupt, Missing, Rejected
from adapters.manifest import Turn
from inference.errors import AdapterFaulty, AdapterMissing, AdapterUnavailable, EngineError
from inference.lora import weights
from inference.lora.bounded import Bounded
from inference.lora.disk import UNLIMITED, DiskCache
from inference.lora.threads import GivenUp, Threads
from inference.lora.turns import SHARE, Turns
from inference.lora.weights import AdapterWeights, TooLarge

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
NICE = 10  # of loading threads; lower gained nothing for the steps, and made loads wait for every other process
LASTING = (PermissionError, IsADirectoryError, NotADirectoryError)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Pace:
    """How loads are tried: at most `attempts` times within `timeout` seconds, first again after `pause` seconds. One
    that has half of its time left does not rest any more between its turns.

    `fetching`, `reading`: how many adapters are fetched from the store, and read from the disk, at a time. `share`: of
    the time that they take while the engine is busy.
    """

    timeout: float = 60.0
    attempts: int = 3
    pause: float = 0.2
    fetching: int = 16
    reading: int = 2
    share: float = SHARE


@dataclass(eq=False)
class Flight:
    """One load under way. What is dropped meanwhile is answered, and kept nowhere."""

    future: Future[AdapterWeights] = field(default_factory=Future)
    dropped: bool = False


class Loader:
    """Reads adapters in threads of its own, so that no step waits for a disk. Futures fail with inference.errors.

    What is on the disk doesn't stand in line behind what must be fetched. One thread hashes or copies at a time, in
    short turns, and while the engine is `busy()` most of the time none does. Host memory keeps at most `host_limit`
    bytes; an adapter may have at most `largest`.
    """

    def __init__(
        self,
        cache: DiskCache,
        base: BaseSpec,
        frozen: Mapping[str, Tensor],
        device: torch.device,
        *,
        host_limit: int = UNLIMITED,
        largest: int = UNLIMITED,
        pace: Pace = Pace(),
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.cache = cache
        self.host: Bounded[AdapterWeights] = Bounded(host_limit)
        self.retries = 0
        self.failures = 0
        self._base = base
        self._frozen = frozen
        self._pinned = device.type == "cuda"
        self._largest = largest
        self._pace = pace
        self._fetching = Threads(pace.fetching, pace.timeout, _late, nice=NICE, name="adapter-fetch")
        self._reading = Threads(pace.reading, pace.timeout, _late, nice=NICE, name="adapter-read")
        self._filling = Threads(pace.reading, nice=NICE, name="adapter-fill")
        self.turns = Turns(busy, pace.share)
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def load(self, digest: str) -> Future[AdapterWeights]:
        """An adapter on the host; one that is under way already is not begun twice."""
        with self._lock:
            if (under_way := self._flights.get(digest)) is not None and not under_way.future.cancelled():
                return under_way.future
            if (kept := self.host.get(digest)) is not None:
                return _done(kept)
            threads = self._reading if digest in self.cache.sizes() else self._fetching
            flight = self._flights[digest] = Flight()
            flight.future = threads.submit(partial(self._load, digest, flight))
        flight.future.add_done_callback(lambda _: self._land(digest, flight))
        return flight.future

    def fill(self, copy: Callable[[], AdapterWeights]) -> Future[AdapterWeights]:
        """Run a copy to the device (arena.Submit). It is never given up, since it would go on writing there."""
        return self._filling.submit(lambda _: copy())

    def drop(self, digest: str) -> None:
        """Free what the host and the disk hold of an adapter. A load that is under way ends, and is not kept."""
        with self._lock:
            if (flight := self._flights.pop(digest, None)) is not None:
                flight.dropped = True
            self.host.pop(digest)
        self.cache.drop(digest)

    def close(self) -> None:
        self._fetching.close()
        self._reading.close()
        self._filling.close()

    def _land(self, digest: str, flight: Flight) -> None:
        with self._lock:
            if self._flights.get(digest) is flight:
                del self._flights[digest]

    def _load(self, digest: str, flight: Flight, given_up: GivenUp) -> AdapterWeights:
        """Store to disk to host, tried again where that may help."""
        turn = partial(self._turn, given_up, time.monotonic() + self._pace.timeout / 2)
        for attempt in itertools.count(1):
            try:
                return self._read(digest, flight, turn)
            except _GivenUp:
                raise
            except Exception as error:
                if not _passing(error) or attempt == self._pace.attempts or given_up():
                    self.failures += 1
                    raise _told(digest, error) from error
            self.retries += 1
            time.sleep(self._pace.pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
        raise AssertionError

    def _read(self, digest: str, flight: Flight, turn: Turn) -> AdapterWeights:
        base, frozen, pinned, largest = self._base, self._frozen, self._pinned, self._largest
        with self.cache.open(digest, turn, lambda: not flight.dropped) as folder, self.host.tally.timed():
            read = weights.read(folder, base, CPU, frozen, pinned=pinned, largest=largest, turn=turn)
        with self._lock:
            if not flight.dropped:
                self.host.put(digest, read, read.nbytes)
        return read

    @contextmanager
    def _turn(self, given_up: GivenUp, hurry_from: float) -> Iterator[None]:
        """However many loads are under way, one core at most computes for them."""
        with self.turns.take(hurry=time.monotonic() > hurry_from):
            if given_up():
                raise _GivenUp
            yield


class _GivenUp(Exception):
    """Nobody waits for this load any more."""


def _late(seconds: float) -> EngineError:
    return AdapterUnavailable(f"The adapter was not loaded within {seconds:g} s.")


def _passing(error: Exception) -> bool:
    """Whether another attempt may end better. What was damaged on its way may arrive whole."""
    if isinstance(error, OSError):
        return not isinstance(error, LASTING) and error.errno not in FULL
    return isinstance(error, Corrupt)


def _told(digest: str, error: Exception) -> EngineError:
    match error:
        case Missing():
            return AdapterMissing(f"The artifact store has no version {digest}.")
        case Corrupt():
            return AdapterFaulty(f"The stored files of version {digest} are damaged.")
        case Rejected():
            return AdapterFaulty(f"Version {digest} does not fit this base model: {error.findings[0].message}")
        case TooLarge():
            return AdapterFaulty(f"Version {digest} can't be held: {error}.")
        case OSError():
            return AdapterUnavailable(f"Version {digest} could not be read: {error.strerror or type(error).__name__}.")
    log.error("loading version %s failed", digest, exc_info=error)
    return AdapterUnavailable(f"Version {digest} could not be loaded: {type(error).__name__}.")


def _done(loaded: AdapterWeights) -> Future[AdapterWeights]:
    future: Future[AdapterWeights] = Future()
    future.set_result(loaded)
    return future
