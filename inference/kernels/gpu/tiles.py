"""Knows which rows of a step share a slot, cut into tiles, on the device; never pointers, ranks or what is computed.

A tile is up to `family` rows of one slot, one program's work. Rows are gathered: sequences of one slot share tiles
wherever in the batch they are. Everything is one int32 tensor, filled by one copy a step:

    [row of each place | slot of each tile | its first place | its last place + 1]     the places sorted by slot
"""

from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import torch

from inference.kernels.gpu.pinned import copy_

Numbers = np.ndarray[Any, np.dtype[np.int32]]
Counts = np.ndarray[Any, np.dtype[np.int64]]


class Runs(Protocol):
    """Rows `starts[i]` up to `ends[i]` use `slots[i]`; the last of all is before `rows`. See `operands.Segments`."""

    @property
    def starts(self) -> tuple[int, ...]: ...
    @property
    def ends(self) -> tuple[int, ...]: ...
    @property
    def slots(self) -> tuple[int, ...]: ...
    @property
    def rows(self) -> int: ...


class Family(IntEnum):
    """Rows of one tile, and by that the kernel: a dot product per row, or tiles of a matrix product."""

    PER_ROW = 1
    GROUPED = 16
    LONG = 64

    @classmethod
    def best(cls, segments: Runs) -> "Family":
        """By rows per slot. The bounds are from other engines' tables, not measured here."""
        rows = sum(segments.ends) - sum(segments.starts)
        mean = rows / max(1, len(set(segments.slots)))
        return cls.PER_ROW if mean < 2 else cls.GROUPED if mean < cls.LONG else cls.LONG


class Tiles:
    """Room for any batch of up to `rows` rows over up to `slots` slots; what `load` leaves free is slot -1: no cost.

    A captured graph reads the tensor that was here when it was captured: load the next step into the same object.
    """

    def __init__(self, family: Family, rows: int, slots: int, device: torch.device | str) -> None:
        self.family = family
        self.rows = rows
        self.count = rows if family is Family.PER_ROW else -(-rows // family) + min(rows, slots)
        self.numbers = torch.full((rows + 3 * self.count,), -1, dtype=torch.int32, device=device)

    @classmethod
    def of(cls, segments: Runs, device: torch.device | str) -> "Tiles":
        """Just large enough, loaded."""
        tiles = cls(Family.best(segments), segments.rows, len(set(segments.slots)), device)
        tiles.load(segments)
        return tiles

    def load(self, segments: Runs) -> None:
        """Take another step's segments, in stream order; what runs before still sees the old ones."""
        copy_(self.numbers, self._pack(segments))

    def _pack(self, segments: Runs) -> Numbers:
        starts, ends, slots = (np.array(each, np.int64) for each in (segments.starts, segments.ends, segments.slots))
        order = np.argsort(slots, kind="stable")
        starts, slots, lengths = starts[order], slots[order], (ends - starts)[order]
        used, first = np.unique(slots, return_index=True)
        rows = np.add.reduceat(lengths, first) if used.size else np.zeros(0, np.int64)
        each = -(-rows // self.family)
        begins = np.repeat(rows.cumsum() - rows, each) + within(each) * int(self.family)
        numbers: Numbers = np.full(self.rows + 3 * self.count, -1, np.int32)
        places, tiles = numbers[: self.rows], numbers[self.rows :].reshape(3, self.count)
        assert lengths.sum() <= self.rows, "more rows than there is room for"
        assert begins.size <= self.count, "more slots than there is room for"
        places[: lengths.sum()] = np.repeat(starts, lengths) + within(lengths)
        tiles[0, : begins.size] = np.repeat(used, each)
        tiles[1, : begins.size] = begins
        tiles[2, : begins.size] = np.minimum(begins + int(self.family), np.repeat(rows.cumsum(), each))
        return numbers


def within(lengths: Counts) -> Counts:
    """0, 1, …, lengths[0] - 1, 0, 1, …, lengths[1] - 1, …"""
    each: Counts = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    return each
