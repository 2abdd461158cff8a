"""y_i = x @ W_i.T + bias_i, then y_i[s:e] += scale * (x[s:e] @ A_i.T) @ B_i.T for every segment, for linears i that
read the same x: one call, one pass over x's adapters. `Linears` for CPUs, `Joined` for GPUs.

    x  [rows, in]     float32 on a CPU
    y  [rows, out_i]  x's dtype, one for each linear
    W  [out_i, in]    `Packed` on a CPU: float32, or bfloat16 or float16 where that holds every number exactly

On a CPU weights are packed once, in panels of outputs that lie side by side, and are the only copy: `Packed.unpack`
gives them back. Narrow ones are widened in registers, so the arithmetic is float32's on the very same numbers, from
half the memory traffic. A row's result depends on that row alone, bit by bit, whatever else is in the batch. On a GPU
they are laid one under the other, for one product of the library's and one launch of each kernel of ours.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.kernels.library import CLinear, CWeights, library
from inference.kernels.operands import ALIGNED, DTYPES, Group, Segments, Table
from inference.kernels.sgmm import joint_sgmm_


def packable(weight: Tensor) -> bool:
    """Whether there is a kernel for it: float32 on a CPU, with compiled kernels at hand."""
    return weight.is_cpu and weight.dtype is torch.float32 and library() is not None


def narrowest(weight: Tensor) -> torch.dtype:
    """The dtype of least bytes that holds every number of a float32 tensor exactly."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(weight.to(dtype).float(), weight):
            return dtype
    return torch.float32


class Packed:
    """A weight [out, in] and a bias [out], as the kernels read them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        native = library()
        assert native is not None
        assert packable(weight)
        self.outputs, self.inputs = weight.shape
        self.panel = native.panel()
        self.dtype = narrowest(weight)
        panels = -(-self.outputs // self.panel)
        self.panels = torch.zeros(panels, self.inputs, self.panel, dtype=self.dtype)
        whole = self.outputs // self.panel
        self.panels[:whole] = weight[: whole * self.panel].reshape(whole, self.panel, self.inputs).transpose(1, 2)
        if whole < panels:
            self.panels[whole, :, : self.outputs - whole * self.panel] = weight[whole * self.panel :].T
        self.bias = torch.zeros(panels * self.panel)
        if bias is not None:
            self.bias[: self.outputs] = bias

    def unpack(self) -> Tensor:
        """The weight [out, in] in float32, a copy."""
        return self.panels.transpose(1, 2).reshape(-1, self.inputs)[: self.outputs].float()


class Linears:
    """Linears that read the same x, each with the pairs of its adapters."""

    def __init__(self, parts: Sequence[tuple[Packed, Table]]) -> None:
        self.parts = parts
        self.inputs = parts[0][0].inputs
        assert all((packed.inputs, table.inputs) == (self.inputs, self.inputs) for packed, table in parts)
        assert all(packed.outputs == table.outputs for packed, table in parts)
        self._outputs = [packed.outputs for packed, _ in parts]
        self._weights = (CWeights * len(parts))(
            *(
                CWeights(p.panels.data_ptr(), p.bias.data_ptr(), table.pairs_address, p.outputs, DTYPES.index(p.dtype))
                for p, table in parts
            )
        )
        self._native = CLinear(ctypes.addressof(self._weights), len(parts), self.inputs)
        self._address = ctypes.addressof(self._native)
        self._places = (ctypes.c_void_p * len(parts))()

    def weight(self, index: int) -> Tensor:
        """Of one of them, [out, in] in float32, a copy."""
        return self.parts[index][0].unpack()

    def __call__(self, x: Tensor, segments: Segments) -> list[Tensor]:
        """x: [..., in]; a y [..., out] for each linear. `Segments.of([], [])` leaves the adapters out."""
        native = library()
        assert native is not None
        assert native.panel() == self.parts[0][0].panel, "the weights were packed for other kernels"
        assert x.dtype is torch.float32
        assert x.shape[-1] == self.inputs
        if not x.is_contiguous():
            x = x.contiguous()
        rows, shape = x.numel() // self.inputs, x.shape[:-1]
        assert segments.rows <= rows
        ys = [x.new_empty(*shape, outputs) for outputs in self._outputs]
        for index, y in enumerate(ys):
            self._places[index] = y.data_ptr()
        native.linear(self._places, x.data_ptr(), self.inputs, rows, self._address, segments.address)
        return ys


def joinable(linears: Sequence[nn.Linear]) -> bool:
    """Whether one product can take their place: plain ones on a GPU, alike in dtype and in having a bias."""
    weights = [linear.weight for linear in linears]
    return (
        len(linears) > 1
        and all(type(linear) is nn.Linear and type(linear.weight) is nn.Parameter for linear in linears)
        and all(weight.is_cuda and weight.dtype in DTYPES for weight in weights)
        and len({(weight.dtype, weight.device, weight.shape[1]) for weight in weights}) == 1
        and len({linear.bias is None for linear in linears}) == 1
        and all(weight.shape[0] % ALIGNED == 0 for weight in weights)
    )


class Joined:
    """Linears that read the same x, as one product with their weights one under the other: the only copy of them."""

    def __init__(self, parts: Sequence[tuple[nn.Linear, Table]]) -> None:
        linears = [linear for linear, _ in parts]
        self.group = Group([table for _, table in parts])
        self.inputs = self.group.inputs
        self._weight = torch.cat([linear.weight for linear in linears])
        self._bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])

    def weight(self, index: int) -> Tensor:
        """Of one of them, [out, in], a view."""
        return torch.split(self._weight, self.group.widths)[index]

    def __call__(self, x: Tensor, segments: Segments) -> list[Tensor]:
        """As `Linears`; the ys are columns of one tensor."""
        y = functional.linear(x, self._weight, self._bias)
        joint_sgmm_(y.view(-1, self.group.outputs), x.reshape(-1, self.inputs), self.group, segments)
        return list(torch.split(y, self.group.widths, dim=-1))
