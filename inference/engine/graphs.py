"""Knows decode steps that are recorded once for a number of rows and then replayed; never why these rows run.

One step in which every row decodes differs from the next in numbers alone: tokens, positions, where blocks lie, which
row uses which slot. They lie in a `Room`, tensors that stay where they are. Recording runs the model over a room, and
replaying runs the same kernels over what the room holds by then. On CUDA a recording is a graph.

A room holds a program for every row, each with an adapter of its own, and pairs are found through tables of pointers:
so what is launched depends on the number of rows alone, and a recording serves any assignment of adapters, ranks and
blocks. There is one for each room and family of kernels, and one for steps of the base alone.

Rows that a plan leaves free are padding: they attend to nothing and store nothing (slot -1), and their logits are
dropped.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from inference.engine.scheduler import Plan, Row
from inference.kernels.attention import Layout
from inference.kernels.gpu.layout import Placed
from inference.kernels.gpu.pinned import copy_
from inference.kernels.gpu.tiles import Family, Tiles
from inference.kernels.operands import Segments
from inference.lora.linear import NO_SEGMENTS
from inference.models.load import Model

FAMILIES = (Family.PER_ROW, Family.GROUPED)
WARM = 2  # passes before a recording: kernels compile, libraries take their workspaces

Replay = Callable[[], Tensor]


class Room:
    """Where a recorded step of `rows` sequences, one new token each, finds its numbers; empty at first.

    segments  of each family, None for none: what the layers are shown, read on the device from `tiles`
    """

    def __init__(self, rows: int, context: int, block: int, device: torch.device) -> None:
        self.rows = rows
        self._block = block
        self._numbers = torch.zeros(2, rows, dtype=torch.int64, device=device)
        self.tokens, self.positions = self._numbers
        self.all = torch.arange(rows, device=device)
        self.placed = Placed(rows, rows, -(-context // block), 1, context, device)
        self.placed.load(Layout.of([], [], [], block))
        self.layout = Layout.of([], [], [], block).on(self.placed)
        self.tiles = {family: Tiles(family, rows, rows, device) for family in FAMILIES}
        self.segments: dict[Family | None, Segments] = {None: NO_SEGMENTS}
        for family, tiles in self.tiles.items():
            assert tiles.count >= rows, "every row may have an adapter of its own"
            self.segments[family] = Segments.of([0], [rows])
            self.segments[family].place(tiles)

    def load(self, rows: Seq[Row]) -> Family | None:
        """Take in another step, on a device in the order of its stream; the family that it is to be replayed in."""
        sequences = [row.sequence for row in rows]
        numbers = np.zeros((2, self.rows), np.int64)
        numbers[0, : len(rows)] = [row.sequence.tokens[row.start] for row in rows]
        numbers[1, : len(rows)] = [row.start for row in rows]
        copy_(self._numbers, numbers)
        contexts = [row.start + 1 for row in rows]
        self.placed.load(Layout.of([1] * len(rows), contexts, [s.blocks for s in sequences], self._block))
        segments = Segments.of([s.slot for s in sequences], [1] * len(rows))
        if segments.empty:
            return None
        family = min(Family.best(segments), FAMILIES[-1])
        self.tiles[family].load(segments)
        return family


Record = Callable[[Room, Family | None, Replay], Replay]
"""Record what the given pass over the room launches."""


class Graphs:
    """Recordings of a model's decode steps of up to `rows` sequences of up to `context` tokens each.

    Made after the cache is allocated and before anything runs; a recording keeps the addresses it has seen. `last` runs
    the last step again.
    """

    def __init__(self, model: Model, rows: int, context: int, block: int, record: Record) -> None:
        self.replayed = 0
        self.last: Replay | None = None
        self._model = model
        self._rooms = [Room(size, context, block, model.device) for size in _sizes(rows)]
        self._replays: dict[tuple[int, Family | None], Replay] = {}
        for room in reversed(self._rooms):  # the largest first, whose memory the others share
            for family in room.segments if room.rows > 1 else (None, Family.PER_ROW):
                self._replays[room.rows, family] = record(room, family, self._pass(room, family))

    def logits(self, plan: Plan) -> Tensor | None:
        """[rows, vocabulary] of a plan, valid until the next; None where the step can't be replayed."""
        room = next((room for room in self._rooms if room.rows >= len(plan.rows)), None)
        if room is None or not all(map(self._replayable, plan.rows)):
            return None
        family = room.load(plan.rows)
        self.replayed += 1
        self.last = self._replays[room.rows, family]
        return self.last()[: len(plan.rows)]

    def _replayable(self, row: Row) -> bool:
        """One that decodes, and whose slot changes linears by pairs alone: what else it may change is Python's work."""
        return row.count == 1 and row.samples and row.sequence.slot not in self._model.sites.rare

    def _pass(self, room: Room, family: Family | None) -> Replay:
        def run() -> Tensor:
            model = self._model
            model.cache.layout = room.layout
            model.sites.batch.segments = model.sites.head.segments = room.segments[family]
            return model.logits(room.tokens, room.positions, room.all)

        return run


def _sizes(most: int) -> Iterator[int]:
    """1, 2, 4, … and `most`."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


def on_cuda() -> Record:
    """CUDA graphs that share memory: one's logits may be gone when another is replayed."""
    pool = torch.cuda.graph_pool_handle()

    def record(room: Room, family: Family | None, run: Replay) -> Replay:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads load adapters
            logits = run()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    return record
