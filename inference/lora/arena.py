"""Knows where adapters lie in device memory: one buffer, leased in pages; never which adapter is whose, or files.

An adapter is one packed buffer on the host (`weights.read`). It gets a single run of pages where one is long enough,
the shortest such; else the longest there are, cut between two matrices, so that kernels read every matrix as a
contiguous tensor; and where small matrices would so take the place of a large one, each time the shortest run that
holds the next matrix. What fragmentation costs is the end of one page per run, and the end of a run that is too short
for the next matrix. Nothing is ever moved: an adapter that finds no place makes slots evict, and what is evicted comes
back from the host tier.

The law: free + leased == total. On a CPU, pages cost memory only once they are written, and `trim` gives the free ones
back to the operating system. On CUDA the buffer is allocated once, and copies run on a stream of their own, after the
steps that may still read what was there before.
"""

import mmap
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from adapters.manifest import Turn
from inference.lora.weights import AdapterWeights, copy, virtual

PAGE = mmap.PAGESIZE  # bytes; the system takes back no less

Submit = Callable[[Callable[[], AdapterWeights]], Future[AdapterWeights]]


@dataclass(frozen=True)
class Run:
    """`pages` pages from page `first` on, that hold the bytes of a packed adapter from `begin` to `end`."""

    first: int
    pages: int
    begin: int = 0
    end: int = 0


@dataclass(frozen=True, eq=False)
class Lease:
    """The runs that hold one adapter, in the order of its bytes. `ready`: the event after which CUDA may write them."""

    runs: tuple[Run, ...]
    ready: torch.cuda.Event | None = None

    @property
    def pages(self) -> int:
        return sum(run.pages for run in self.runs)

    def at(self, offset: int) -> int:
        """Where in the arena the adapter's byte `offset` lies."""
        run = self.runs[bisect_right(self.runs, offset, key=lambda run: run.begin) - 1]
        return run.first * PAGE + offset - run.begin


class Arena:
    """`size` bytes on `device`. One thread makes and releases leases; `fill` copies in the threads of `submit`, and on
    a CPU every chunk within a `turn()`."""

    page = PAGE

    def __init__(self, size: int, device: torch.device, submit: Submit | None = None, turn: Turn = nullcontext) -> None:
        self.total = size // PAGE
        self._free = [Run(0, self.total)] if self.total else []  # by first page; neighbours are always joined
        self._leases: set[Lease] = set()
        self._submit = submit or _at_once
        self._turn = turn
        self._cuda = device.type == "cuda"
        self._memory = None if self._cuda else virtual(self.bytes or PAGE)
        self.buffer: Tensor = (
            torch.empty(self.bytes, dtype=torch.uint8, device=device)
            if self._memory is None
            else torch.frombuffer(self._memory, dtype=torch.uint8)
        )
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]

    @property
    def bytes(self) -> int:
        return self.total * PAGE

    @property
    def free(self) -> int:
        """Pages."""
        return sum(run.pages for run in self._free)

    @property
    def leased(self) -> int:
        """Pages."""
        return sum(lease.pages for lease in self._leases)

    def pages(self, weights: AdapterWeights) -> int:
        """What an adapter takes at least: more if it has to be cut."""
        return _pages(weights.nbytes)

    def lease(self, weights: AdapterWeights) -> Lease | None:
        """Room for an adapter; None if there is none."""
        runs = _runs(self._free, weights)
        if runs is None:
            return None
        for run in runs:
            self._take(run)
        ready = torch.cuda.current_stream(self.buffer.device).record_event() if self._cuda else None
        lease = Lease(tuple(runs), ready)
        self._leases.add(lease)
        return lease

    def fits(self, weights: AdapterWeights, kept: Collection[Lease]) -> bool:
        """Whether there would be room for an adapter if all leases but the `kept` were released."""
        return _runs(_with(self._free, self._leases.difference(kept)), weights) is not None

    def release(self, lease: Lease) -> None:
        self._leases.remove(lease)
        self._free = _with(self._free, [lease])

    def trim(self) -> None:
        """Make free pages cost nothing where they can. A page that is leased anew at once is better kept."""
        if self._memory is not None:
            for run in self._free:
                self._memory.madvise(mmap.MADV_DONTNEED, run.first * PAGE, run.pages * PAGE)

    def fill(self, lease: Lease, weights: AdapterWeights) -> Future[AdapterWeights]:
        """Copy an adapter into its lease; the future has it with tensors that are views into the arena."""
        return self._submit(lambda: self._filled(lease, weights))

    def check(self) -> None:
        """Assert the law, and that no page is in two runs."""
        assert self.free + self.leased == self.total, "an adapter's pages were lost"
        runs = sorted([*self._free, *(run for lease in self._leases for run in lease.runs)], key=lambda run: run.first)
        assert all(one.first + one.pages <= other.first for one, other in pairwise(runs)), "a page was leased twice"

    def _take(self, run: Run) -> None:
        at, whole = next((at, free) for at, free in enumerate(self._free) if free.first == run.first)
        left = Run(run.first + run.pages, whole.pages - run.pages)
        self._free[at : at + 1] = [left] if left.pages else []

    def _filled(self, lease: Lease, weights: AdapterWeights) -> AdapterWeights:
        assert weights.buffer is not None, "only what was packed on the host can be copied"
        if self._stream is None:
            for run in lease.runs:
                target = self.buffer.numpy()[run.first * PAGE :]
                copy(target, weights.buffer.numpy()[run.begin : run.end], self._turn)
        else:
            self._copy_aside(self._stream, weights.buffer, lease)

        def view(tensor: Tensor) -> Tensor:
            start = lease.at(int(tensor.storage_offset()) * tensor.element_size())
            return self.buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

        return weights.map(view)

    def _copy_aside(self, stream: torch.cuda.Stream, source: Tensor, lease: Lease) -> None:
        """On a stream beside the steps', which wait for nothing; this thread waits until the bytes have arrived."""
        assert lease.ready is not None
        with torch.cuda.stream(stream):
            stream.wait_event(lease.ready)
            for run in lease.runs:
                start, size = run.first * PAGE, run.end - run.begin
                self.buffer[start : start + size].copy_(source[run.begin : run.end], non_blocking=True)
            done = stream.record_event()
        done.synchronize()


def _pages(size: int) -> int:
    return -(-size // PAGE)


def _runs(free: Sequence[Run], weights: AdapterWeights) -> list[Run] | None:
    """Where an adapter comes to lie; None if there is no room."""
    whole = _whole(free, weights.nbytes)
    if whole is not None:
        return whole
    cuts, longest_first = [*weights.starts, weights.nbytes], sorted(free, key=lambda run: -run.pages)
    return _cut(longest_first, cuts) or _cut(longest_first[::-1], cuts)


def _whole(free: Sequence[Run], size: int) -> list[Run] | None:
    """The shortest free run that holds `size` bytes."""
    enough = [run for run in free if run.pages >= _pages(size)]
    if not size:
        return []
    return [Run(min(enough, key=lambda run: run.pages).first, _pages(size), 0, size)] if enough else None


def _cut(free: Sequence[Run], cuts: Sequence[int]) -> list[Run] | None:
    """The bytes from the first to the last of `cuts` over free runs, parted at cuts only; None if they don't fit.

    Next is always the first of the free runs that are left which holds the next matrix.
    """
    runs: list[Run] = []
    left, at = list(free), 0
    while at < len(cuts) - 1:
        run = next((run for run in left if run.pages * PAGE >= cuts[at + 1] - cuts[at]), None)
        if run is None:
            return None
        left.remove(run)
        end = bisect_right(cuts, cuts[at] + run.pages * PAGE) - 1
        runs.append(Run(run.first, _pages(cuts[end] - cuts[at]), cuts[at], cuts[end]))
        at = end
    return runs


def _with(free: Sequence[Run], leases: Iterable[Lease]) -> list[Run]:
    """The free runs once these leases are released, in order and joined."""
    runs = [*free, *(run for lease in leases for run in lease.runs)]
    return list(_joined(sorted(runs, key=lambda run: run.first)))


def _joined(runs: Sequence[Run]) -> Iterator[Run]:
    """Free runs in order, neighbours made one."""
    first, pages = 0, 0
    for run in runs:
        if pages and first + pages == run.first:
            pages += run.pages
        else:
            if pages:
                yield Run(first, pages)
            first, pages = run.first, run.pages
    if pages:
        yield Run(first, pages)


def _at_once(job: Callable[[], AdapterWeights]) -> Future[AdapterWeights]:
    future: Future[AdapterWeights] = Future()
    try:
        future.set_result(job())
    except Exception as error:
        future.set_exception(error)
    return future
