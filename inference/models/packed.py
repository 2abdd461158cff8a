"""Knows how a CPU multiplies a decode step's few rows fastest; never what the rows are.

oneDNN's prepacked weights take a third to a half of `F.linear`'s time from a few rows on, and a little more for one or
two (docs/benchmarks.md). They are a second copy of the weights, so they are made only where memory is plentiful.
"""

import psutil
import torch
from torch import Tensor, nn

FEW = 3  # rows up to which the plain weights are read faster
ROWS = 32  # the batch that the packing is chosen for
PLENTY = 0.4  # of the free memory, that the copies may take


class PackedLinear(nn.Module):
    """y = x Wᵀ + b, for x [..., in] in float32 on a CPU; the packed weights are used from FEW + 1 rows on."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight, ROWS)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() <= FEW * x.shape[-1]:
            plain: Tensor = self.linear(x)
            return plain
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.linear.bias, "none", [], "")
        return y


def worth_packing(network: nn.Module) -> bool:
    """Float32 on a CPU with oneDNN, and memory for the copies."""
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Linear)]
    plain = all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in weights)
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return plain and torch._C._has_mkldnn and size < PLENTY * psutil.virtual_memory().available


def pack(network: nn.Module) -> None:
    """Put packed linears in the place of the plain ones."""
    linears = [(name, module) for name, module in network.named_modules() if type(module) is nn.Linear]
    for name, linear in linears:
        network.set_submodule(name, PackedLinear(linear))
