"""Knows how a linear layer adds each row's adapter to its output; never where adapters come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from inference.kernels.linear import Joined, Linears
from inference.kernels.operands import Segments, Table
from inference.kernels.sgmm import sgmm_
from inference.lora.weights import Correction

NO_SEGMENTS = Segments.of([], [])


@dataclass
class Batch:
    """What the layers must know of the step under way; the runner sets it, layers that see the same rows share it."""

    segments: Segments = NO_SEGMENTS


class LoraLinear(nn.Module):
    """y = linear(x), corrected where a slot asks for it, then each segment's low-rank product added in place.

    x: [..., in], rows in the batch's order. A slot without correction costs nothing, one with it its own rows.
    """

    def __init__(self, linear: nn.Linear, table: Table, batch: Batch) -> None:
        super().__init__()
        self.linear = linear
        self.table = table
        self.batch = batch
        self.corrections: dict[int, Correction] = {}
        self.siblings: Siblings | None = None

    @property
    def weight(self) -> Tensor:
        return self.linear.weight if self.siblings is None else self.siblings.weight(self)

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.siblings is not None:
            return self.siblings.output(self, x)
        y: Tensor = self.linear(x)
        self.adapt(y, x)
        return y

    def adapt(self, y: Tensor, x: Tensor) -> None:
        """Bring y = linear(x), in place, to what each row's adapter makes of it."""
        if self.batch.segments.empty:
            return
        rows, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        if self.corrections:
            for start, end, slot in self.batch.segments:
                correction = self.corrections.get(slot)
                if correction is not None:
                    correct_(rows[start:end], inputs[start:end], correction)
        sgmm_(rows, inputs, self.table, self.batch.segments)


def straightened(transposed: Any) -> nn.Linear:
    """A linear that computes what one with a weight of [in, out] does (a Conv1D), on the same memory."""
    inputs, outputs = transposed.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(transposed.weight.T, requires_grad=False)
    linear.bias = transposed.bias
    return linear


class Siblings:
    """Linears that read the same x, computed in one call when the first of them is asked; the others fetch theirs.

    `linears` has taken the members' weights over, in their order: the only copy.
    """

    def __init__(self, members: Sequence[LoraLinear], linears: Linears | Joined) -> None:
        self._members = list(members)
        self._batch = members[0].batch
        self.linears = linears
        self._x: Tensor | None = None
        self._outputs: dict[LoraLinear, Tensor] = {}
        for member in members:
            member.linear.weight = None  # type: ignore[assignment]
            member.siblings = self

    @property
    def inputs(self) -> int:
        return self.linears.inputs

    def multiply(self, x: Tensor) -> list[Tensor]:
        """Every member's x @ W.T + bias, without adapters."""
        return self.linears(x, NO_SEGMENTS)

    def weight(self, member: LoraLinear) -> Tensor:
        """A member's own, [out, in]."""
        return self.linears.weight(self._members.index(member))

    def output(self, member: LoraLinear, x: Tensor) -> Tensor:
        if self._x is not x or member not in self._outputs:
            self._compute(x)
        y = self._outputs.pop(member)
        if not self._outputs:
            self._x = None
        return y

    def _compute(self, x: Tensor) -> None:
        segments = self._batch.segments
        exceptional = any(slot in m.corrections for m in self._members if m.corrections for slot in segments.slots)
        ys = self.linears(x, NO_SEGMENTS if exceptional else segments)
        self._x, self._outputs = x, dict(zip(self._members, ys, strict=True))
        if exceptional:
            for member, y in self._outputs.items():
                member.adapt(y, x)


def correct_(y: Tensor, x: Tensor, correction: Correction) -> None:
    """Bring one segment's y = linear(x), in place, to what the correction says."""
    if correction.weight is not None:
        y.copy_(functional.linear(x, correction.weight))
    if correction.numbers is not None and correction.tokens is not None:
        y.index_copy_(1, correction.numbers, functional.linear(x, correction.tokens))
    if correction.factor is not None:
        y.mul_(correction.factor)
    if correction.shift is not None:
        y.add_(correction.shift)
