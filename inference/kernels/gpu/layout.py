"""Knows where a step's rows and cached blocks are, on the device; never what attention does with them.

Everything but the tables is one int32 tensor, filled by one copy a step; behind it arrive the blocks that the step
uses, which are spread from there over the tables, as wide as any step may need them:

    slots      int64 [tokens], where each new token's key goes; -1: nowhere
    tables     [sequences, width], starts [sequences + 1], contexts [sequences]     as in `attention.Layout`
    tiles      [count, 2], a sequence and the first of its new tokens that a program takes; -1: none
"""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from inference.kernels.gpu.pinned import copy_
from inference.kernels.gpu.tiles import within

CHUNK = 16
"""New tokens of one sequence that a program takes, where some sequence has more than one."""


class OnHost(Protocol):
    """A step's numbers as `attention.Layout` has them."""

    @property
    def block_tables(self) -> Tensor: ...
    @property
    def query_starts(self) -> Tensor: ...
    @property
    def context_lengths(self) -> Tensor: ...
    @property
    def slots(self) -> Tensor: ...


class Placed:
    """Room for `tokens` new tokens of `sequences` sequences: of each at most `query` new ones, `width` blocks and
    `context` tokens in all.

    A captured graph reads the tensor that was here when it was captured: load the next step into the same object.
    """

    def __init__(
        self, tokens: int, sequences: int, width: int, query: int, context: int, device: torch.device | str
    ) -> None:
        self.sequences = sequences
        self.width = width
        self.query = query
        self.context = context
        self.tile = 1 if query <= 1 else CHUNK
        self.count = tokens if self.tile == 1 else -(-tokens // CHUNK) + min(tokens, sequences)
        sizes = (2 * tokens, sequences + 1, sequences, 2 * self.count, sequences * width)
        self._numbers = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        slots, self.starts, self.contexts, self.tiles, self._blocks = torch.split(self._numbers, list(sizes))
        self.slots: Tensor = slots.view(torch.int64)
        self.tables = torch.zeros(sequences, width, dtype=torch.int32, device=device)

    @classmethod
    def of(cls, layout: OnHost, device: torch.device | str) -> "Placed":
        """Just large enough, loaded."""
        sequences, width = layout.block_tables.shape
        query = int(np.diff(layout.query_starts.numpy()).max(initial=0))
        context = int(layout.context_lengths.numpy().max(initial=0))
        placed = cls(layout.slots.shape[0], sequences, width, query, context, device)
        placed.load(layout)
        return placed

    def load(self, layout: OnHost) -> None:
        """Take another step's layout, its slots on the host, in stream order."""
        starts, contexts = layout.query_starts.numpy(), layout.context_lengths.numpy()
        lengths = np.diff(starts)
        each = -(-lengths // self.tile)
        sequences, width = layout.block_tables.shape
        assert lengths.max(initial=0) <= self.query, "a sequence has more new tokens than there is room for"
        assert contexts.max(initial=0) <= self.context, "a sequence has more context than there is room for"
        assert width <= self.width, "a sequence has more blocks than there is room for"
        slots = _padded(layout.slots.numpy(), self.slots.shape[0], -1)
        tiles = np.stack([np.repeat(np.arange(sequences), each), within(each) * self.tile], axis=1).astype(np.int32)
        parts = (
            slots.view(np.int32),
            _padded(starts, self.sequences + 1, int(starts[-1])),
            _padded(contexts, self.sequences, 0),
            _padded(tiles.ravel(), 2 * self.count, -1),
            layout.block_tables.numpy().ravel(),
        )
        numbers = np.concatenate(parts)
        copy_(self._numbers[: numbers.size], numbers)
        self.tables[:sequences, :width] = self._blocks[: sequences * width].view(sequences, width)


def _padded(numbers: np.ndarray[Any, Any], size: int, fill: int) -> np.ndarray[Any, Any]:
    assert numbers.size <= size, "more than there is room for"
    return np.concatenate([numbers, np.full(size - numbers.size, fill, numbers.dtype)])
