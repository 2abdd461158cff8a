"""What `sgmm` reads: which rows use which slot, and the pairs that are in the slots, as the kernels find them.

`Segments` are made once a step, a `Table` once a linear, a `Group` of tables whose linears read the same x. A handle
names either to the registered op; what is no longer used elsewhere is forgotten here too.
"""

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from inference.kernels.gpu.pinned import copy_
from inference.kernels.gpu.tiles import Tiles
from inference.kernels.library import CSegments, CTable
from inference.kernels.reference import Pair

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALIGNED = 16  # outputs: where a grouped table's columns may begin, so that a GPU reads them in wide loads
WIDEST = 256
"""The largest rank on a GPU: what a row has room for between the two products, whatever a graph was captured with."""

PAIR = np.dtype(  # struct Pair of kernels.h
    [("a", "u8"), ("b", "u8"), ("rank", "i4"), ("dtype", "i4"), ("scale", "f4"), ("unused", "i4")]
)


@dataclass(frozen=True)
class Segments:
    """Which rows of a step use which slot: row `starts[i]` up to `ends[i]` uses `slots[i]`. Built once per step.

    rows     how many rows the runs reach
    highest  the largest slot, -1 for none
    address  of the C struct
    fixed    whether they were placed in tiles that later steps are loaded into: every table is then launched over
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    slots: tuple[int, ...]
    rows: int = field(init=False, repr=False)
    highest: int = field(init=False, repr=False)
    address: int = field(init=False, repr=False, compare=False)
    fixed: bool = field(init=False, repr=False, compare=False, default=False)
    _tiles: Tiles | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        memory = array("i", self.starts + self.ends + self.slots)
        at, width = memory.buffer_info()[0], len(self.slots) * memory.itemsize
        native = CSegments(at, at + width, at + 2 * width, len(self.slots))
        object.__setattr__(self, "rows", max(self.ends, default=0))
        object.__setattr__(self, "highest", max(self.slots, default=-1))
        object.__setattr__(self, "address", ctypes.addressof(native))
        object.__setattr__(self, "_memory", (memory, native))
        segments_by_handle[id(self)] = self

    @classmethod
    def of(cls, slots: Sequence[int], lengths: Sequence[int]) -> "Segments":
        """Sequence k has the next `lengths[k]` rows and uses `slots[k]`, -1 for none. Neighbours of one slot merge."""
        assert len(slots) == len(lengths)
        starts: list[int] = []
        ends: list[int] = []
        kept: list[int] = []
        row = 0
        for slot, length in zip(slots, lengths, strict=True):
            if slot >= 0 and length > 0:
                if kept and kept[-1] == slot and ends[-1] == row:
                    ends[-1] = row + length
                else:
                    starts.append(row)
                    ends.append(row + length)
                    kept.append(slot)
            row += length
        return cls(tuple(starts), tuple(ends), tuple(kept))

    def place(self, tiles: Tiles) -> None:
        """Load these segments into tiles that a captured graph reads, in place of tiles of their own.

        Before the capture too: a copy within it would be replayed.
        """
        tiles.load(self)
        object.__setattr__(self, "_tiles", tiles)
        object.__setattr__(self, "fixed", True)

    def tiles(self, device: torch.device) -> Tiles:
        """These segments on a device: copied there at the first call, once per step."""
        if self._tiles is None:
            object.__setattr__(self, "_tiles", Tiles.of(self, device))
        assert self._tiles is not None
        return self._tiles

    @property
    def handle(self) -> int:
        """Names these segments to the registered op."""
        return id(self)

    @property
    def empty(self) -> bool:
        """No row has an adapter: the caller may skip every LoRA call of the step."""
        return not self.slots

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.starts, self.ends, self.slots, strict=True)


class Table:
    """The pairs of one linear, by slot. Keeps the tensors alive; a slot without a pair costs nothing.

    A slot may change only while no step that names it is running; on a GPU, in the order of the stream that runs steps.

    pairs_address  the C structs on the host, by slot
    device_pairs  the C structs where the pairs are: on a GPU a copy at an address that stays, so that a captured graph
                  sees every change; give `device` where graphs are captured before the first pair is set
    """

    def __init__(self, slots: int, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.pairs: list[Pair | None] = [None] * slots
        self._memory = np.zeros(slots, PAIR)
        self.pairs_address = self._memory.ctypes.data
        self._native = CTable(self.pairs_address, inputs, outputs)
        self.device_pairs = torch.from_numpy(self._memory.view(np.int64).reshape(slots, 4)).to(device)
        self.address = ctypes.addressof(self._native)
        self.any = False
        tables_by_handle[id(self)] = self

    @property
    def handle(self) -> int:
        """Names this table to the registered op."""
        return id(self)

    def set(self, slot: int, a: Tensor, b: Tensor, scale: float) -> None:
        """Fill a slot with A [rank, in] and B [out, rank]; both contiguous, of one dtype and on one device."""
        rank = a.shape[0]
        assert a.shape == (rank, self.inputs), f"A is {tuple(a.shape)}, the linear reads {self.inputs}"
        assert b.shape == (self.outputs, rank), f"B is {tuple(b.shape)}, expected {(self.outputs, rank)}"
        assert a.dtype == b.dtype, f"A is {a.dtype}, B is {b.dtype}"
        assert a.dtype in DTYPES, f"{a.dtype} is not an adapter's dtype"
        assert a.device == b.device
        assert a.is_contiguous()
        assert b.is_contiguous()
        if a.is_cuda:
            assert rank <= WIDEST, f"rank {rank} is over {WIDEST}"
            a, b = _aligned(a), _aligned(b)
        self.pairs[slot] = (a, b, scale)
        self._write(slot, (a.data_ptr(), b.data_ptr(), rank, DTYPES.index(a.dtype), scale, 0), a.device)
        self.any = True

    def clear(self, slot: int) -> None:
        """Empty a slot and let go of its tensors."""
        self.pairs[slot] = None
        self._write(slot, (0, 0, 0, 0, 0.0, 0), self.device_pairs.device)
        self.any = any(pair is not None for pair in self.pairs)

    def _write(self, slot: int, pair: tuple[int, int, int, int, float, int], device: torch.device) -> None:
        self._memory[slot] = pair
        if self.device_pairs.device != device:
            assert not self.any, "a table's pairs are on one device"
            self.device_pairs = self.device_pairs.to(device)
        if self.device_pairs.data_ptr() != self.pairs_address:
            copy_(self.device_pairs[slot], self._memory[slot : slot + 1].view(np.int64))


class Stack(Table):
    """The pairs of `count` linears of one shape, by slot: that of slot s and linear n is the table's s * count + n."""

    def __init__(self, slots: int, count: int, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        super().__init__(slots * count, inputs, outputs, device)
        self.count = count
        self.filled: set[int] = set()

    def fill(self, slot: int, a: Tensor, b: Tensor, scale: float) -> None:
        """Fill all of a slot with A [count, rank, in] and B [count, out, rank]; as `set` has them."""
        assert a.shape == (self.count, a.shape[1], self.inputs), f"A is {tuple(a.shape)}"
        assert b.shape == (self.count, self.outputs, a.shape[1]), f"B is {tuple(b.shape)}"
        assert a.dtype == b.dtype
        assert a.dtype in DTYPES
        assert a.is_contiguous()
        assert b.is_contiguous()
        pairs: list[tuple[Tensor, Tensor]] = list(zip(a.unbind(), b.unbind(), strict=True))
        if a.is_cuda:
            assert a.shape[1] <= WIDEST, f"rank {a.shape[1]} is over {WIDEST}"
            pairs = [(_aligned(one), _aligned(other)) for one, other in pairs]
        kind = (a.shape[1], DTYPES.index(a.dtype), scale, 0)
        rows = np.array([(one.data_ptr(), other.data_ptr(), *kind) for one, other in pairs], PAIR)
        self._put(slot, [(one, other, scale) for one, other in pairs], rows, a.device)
        self.filled.add(slot)
        self.any = True

    def clear(self, slot: int) -> None:
        """Empty all of a slot and let go of its tensors."""
        if slot in self.filled:
            self._put(slot, [None] * self.count, np.zeros(self.count, PAIR), self.device_pairs.device)
            self.filled.remove(slot)
            self.any = bool(self.filled)

    def _put(self, slot: int, pairs: Sequence[Pair | None], rows: np.ndarray, device: torch.device) -> None:
        at = slice(slot * self.count, (slot + 1) * self.count)
        self.pairs[at] = pairs
        self._memory[at] = rows
        if self.device_pairs.device != device:
            assert not self.any, "a table's pairs are on one device"
            self.device_pairs = self.device_pairs.to(device)
        if self.device_pairs.data_ptr() != self.pairs_address:
            copy_(self.device_pairs[at], rows.view(np.int64).reshape(self.count, -1))


class Group:
    """Tables of linears that read the same x and write columns side by side of one y: one launch for all of them.

    pairs    int64 [tables, slots, 4]; each table's `device_pairs` is its part of it from now on
    columns  int32 [tables + 1], where each table's columns begin and the last one's end
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        assert all(table.inputs == tables[0].inputs for table in tables)
        assert all(table.outputs % ALIGNED == 0 for table in tables)
        self.tables = tables
        self.inputs = tables[0].inputs
        self.widths = [table.outputs for table in tables]
        self.outputs = sum(self.widths)
        begins = [0, *accumulate(self.widths)]
        self.columns = torch.tensor(begins, dtype=torch.int32).to(tables[0].device_pairs.device)
        with torch.inference_mode(False):  # slots are filled outside of it too
            self.pairs = torch.stack([table.device_pairs for table in tables])
            for table, pairs in zip(tables, self.pairs, strict=True):
                table.device_pairs = pairs

    @property
    def any(self) -> bool:
        return any(table.any for table in self.tables)


def _aligned(tensor: Tensor) -> Tensor:
    """Itself, or a copy that begins at a multiple of 16 bytes, which the GPU kernels read faster."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


tables_by_handle: WeakValueDictionary[int, Table] = WeakValueDictionary()
segments_by_handle: WeakValueDictionary[int, Segments] = WeakValueDictionary()
