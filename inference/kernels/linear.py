"""y_i = x @ W_i.T + bias_i, then y_i[s:e] += scale * (x[s:e] @ A_i.T) @ B_i.T for every segment, for linears i that
read the same x: one call, one pass over x's adapters, for CPUs.

    x  [rows, in]     float32
    y  [rows, out_i]  float32, one for each linear
    W  [out_i, in]    `Packed`: float32, or bfloat16 or float16 where that holds every number exactly

Weights are packed once, in panels of outputs that lie side by side, and are the only copy: `Packed.unpack` gives them
back. Narrow ones are widened in registers, so the arithmetic is float32's on the very same numbers, from half the
memory traffic. A row's result depends on that row alone, bit by bit, whatever else is in the batch.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from inference.kernels.library import CLinear, CWeights, library
from inference.kernels.sgmm import DTYPES, Segments, Table


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
        self.panels[:whole] = weight[: whole * self.panel].view(whole, self.panel, self.inputs).transpose(1, 2)
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
