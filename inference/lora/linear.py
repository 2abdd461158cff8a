"""Knows how a linear layer adds each row's adapter to its output; never where adapters come from."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from inference.kernels.sgmm import Segments, Table, sgmm_
from inference.lora.weights import AdapterWeights


@dataclass
class Batch:
    """What the linears must know of the step under way; the runner sets it, all linears of a model share it."""

    segments: Segments = field(default_factory=lambda: Segments.of([], []))


class LoraLinear(nn.Module):
    """y = linear(x), then each segment's low-rank product added in place. x: [..., in], rows in the batch's order."""

    def __init__(self, linear: nn.Linear, table: Table, batch: Batch) -> None:
        super().__init__()
        self.linear = linear
        self.table = table
        self.batch = batch

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        if not self.batch.segments.empty:
            sgmm_(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), self.table, self.batch.segments)
        return y


class Sites:
    """Every linear that adapters may change, by module path. `wanted` picks them; the model is changed in place."""

    def __init__(self, model: nn.Module, slots: int, wanted: Callable[[str], bool]) -> None:
        self.batch = Batch()
        self.tables: dict[str, Table] = {}
        linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and wanted(n)}
        for name, linear in linears.items():
            self.tables[name] = table = Table(slots, linear.in_features, linear.out_features)
            model.set_submodule(name, LoraLinear(linear, table, self.batch))

    def install(self, slot: int, weights: AdapterWeights) -> None:
        """Make a slot's rows use these weights. The slot must be empty."""
        for module, (a, b, scale) in weights.pairs.items():
            self.tables[module].set(slot, a, b, scale)

    def clear(self, slot: int) -> None:
        for table in self.tables.values():
            table.clear(slot)
