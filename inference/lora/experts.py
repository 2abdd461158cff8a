"""Knows how a mixture's experts add each row's adapter to their products; never where adapters come from.

A row goes to some experts, each with a matrix and, in the row's slot, a pair of its own. So rows are sorted by expert,
as the base's product wants them, and those of one slot lie together there as in the batch: a segment for each expert
and slot, and the kernel of the linears adds them all.
"""

from typing import Any

import numpy as np
from torch import Tensor, bincount, empty_like, int32, nn
from torch.nn import functional

from inference.kernels.operands import Segments, Stack
from inference.kernels.sgmm import sgmm_
from inference.lora.linear import Batch


class LoraExperts(nn.Module):
    """experts(x, chosen, weights), and for every row whose slot has pairs what its own experts make of x with them.

    x: [rows, in], in the batch's order; chosen, weights: [rows, experts a row]. While no row's slot has any, the
    experts compute as Transformers has them; else all rows do as its `grouped_mm` does.
    """

    def __init__(self, experts: Any, slots: int, batch: Batch) -> None:
        super().__init__()
        self.experts = experts
        self._slots = slots
        self._batch = batch
        self._tables: dict[str, Stack] = {}

    def table(self, parameter: str) -> Stack:
        """The pairs of a parameter's matrices; made when first asked for, since few bases' experts have any."""
        if parameter not in self._tables:
            own = getattr(self.experts, parameter)
            self._tables[parameter] = Stack(self._slots, own.shape[0], own.shape[2], own.shape[1], own.device)
        return self._tables[parameter]

    def clear(self, slot: int) -> None:
        for table in self._tables.values():
            table.clear(slot)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        changed = {slot for table in self._tables.values() for slot in table.filled}
        if changed.isdisjoint(self._batch.segments.slots):
            y: Tensor = self.experts(hidden_states, top_k_index, top_k_weights)
            return y
        chosen = top_k_index.reshape(-1)
        order = chosen.argsort(stable=True)
        rows = order // top_k_index.shape[-1]
        ends = bincount(chosen, minlength=self.experts.num_experts).cumsum(0).to(int32)
        segments = self._sorted(chosen[order], rows)
        y = self._multiply("gate_up_proj", hidden_states[rows], ends, segments)
        y = self._multiply("down_proj", self.experts._apply_gate(y), ends, segments)
        out = empty_like(y)
        out[order] = y * top_k_weights.reshape(-1)[order, None]
        return out.view(*top_k_index.shape, -1).sum(1).to(hidden_states.dtype)

    def _multiply(self, parameter: str, x: Tensor, ends: Tensor, segments: Segments) -> Tensor:
        """x [rows, in], sorted by expert, `ends` where each expert's end."""
        own = getattr(self.experts, parameter)
        y: Tensor = functional.grouped_mm(x.to(own.dtype), own.transpose(-2, -1), offs=ends)
        if parameter in self._tables:
            sgmm_(y, x, self._tables[parameter], segments)
        return y

    def _sorted(self, chosen: Tensor, rows: Tensor) -> Segments:
        """Runs of rows of one expert and slot, by their place in a Stack."""
        experts = self.experts.num_experts
        bases = np.full(int(rows.shape[0]), -1, np.int64)
        for start, end, slot in self._batch.segments:
            bases[start:end] = slot * experts
        found = bases[rows.cpu().numpy()]
        places = np.where(found < 0, -1, found + chosen.cpu().numpy())
        starts = np.flatnonzero(np.diff(places, prepend=-2))
        ends = np.append(starts[1:], len(places))
        kept = places[starts] >= 0
        return Segments(*(tuple(part[kept].tolist()) for part in (starts, ends, places[starts])))
