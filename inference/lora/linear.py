"""Knows how a linear layer adds each row's adapter to its output; never where adapters come from."""

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional

from inference.kernels.sgmm import Segments, Table, sgmm_
from inference.lora.weights import Correction


@dataclass
class Batch:
    """What the layers must know of the step under way; the runner sets it, layers that see the same rows share it."""

    segments: Segments = field(default_factory=lambda: Segments.of([], []))


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

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        if not self.batch.segments.empty:
            rows, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
            if self.corrections:
                self._correct(rows, inputs)
            sgmm_(rows, inputs, self.table, self.batch.segments)
        return y

    def _correct(self, y: Tensor, x: Tensor) -> None:
        for start, end, slot in self.batch.segments:
            correction = self.corrections.get(slot)
            if correction is not None:
                correct_(y[start:end], x[start:end], correction)


def correct_(y: Tensor, x: Tensor, correction: Correction) -> None:
    """Bring one segment's y = linear(x), in place, to what the correction says."""
    if correction.weight is not None:
        y.copy_(functional.linear(x, correction.weight))
    if correction.factor is not None:
        y.mul_(correction.factor)
    if correction.shift is not None:
        y.add_(correction.shift)
