"""Launches the segmented-gather GEMM on a GPU. Knows shapes and tile sizes; never what a program does with them.

Two launches, for one linear or for a group that reads the same x: shrink, a program per tile and part of `in`; expand,
a program per tile and block of `out`. Both depend on the tiles' room, the linears' shapes and the family only, so they
can be captured once per padded batch size and family.
A row's result depends on its own pair alone, bit by bit, within one family; another family sums in another order.

Tile sizes follow what SGLang and vLLM found on Hopper GPUs; none was measured here. Their numerics are tested under
Triton's interpreter and they compile for sm_80 and sm_90, but they have not run on hardware.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import knobs

from inference.kernels.gpu import sgmm_kernels as kernels
from inference.kernels.gpu.tiles import Family
from inference.kernels.operands import WIDEST, Group, Segments, Table


@dataclass(frozen=True)
class Shape:
    """Of a family's programs: inputs, outputs and ranks at a time; least inputs in a part of the shrink; most parts."""

    inputs: int
    outputs: int
    ranks: int
    part: int
    parts: int
    warps: int = 4

    def splits(self, inputs: int) -> int:
        """Parts of the shrink's sum: by the linear alone, so that no batch changes a row's result."""
        return max(1, min(self.parts, inputs // self.part))


SHAPES = {
    Family.PER_ROW: Shape(inputs=256, outputs=128, ranks=16, part=256, parts=16),
    Family.GROUPED: Shape(inputs=128, outputs=128, ranks=32, part=256, parts=8),
    Family.LONG: Shape(inputs=64, outputs=128, ranks=32, part=2048, parts=2),
}


def sgmm_(y: Tensor, x: Tensor, table: Table, segments: Segments) -> None:
    """The public op's face and meaning; the table's pairs lie where x does."""
    assert x.shape[1] == table.inputs
    assert y.shape == (x.shape[0], table.outputs)
    _launch(y, x, table.device_pairs[None], None, [table.outputs], segments)


def joint_sgmm_(y: Tensor, x: Tensor, group: Group, segments: Segments) -> None:
    """`sgmm.joint_sgmm_`: the same two launches for all of a group's tables."""
    assert x.shape[1] == group.inputs
    assert y.shape == (x.shape[0], group.outputs)
    _launch(y, x, group.pairs, group.columns, group.widths, segments)


def _launch(
    y: Tensor, x: Tensor, pairs: Tensor, columns: Tensor | None, widths: Sequence[int], segments: Segments
) -> None:
    tiles = segments.tiles(x.device)
    (rows, inputs), (tables, slots, words) = x.shape, pairs.shape
    assert pairs.device == x.device
    assert pairs.is_contiguous()
    assert tiles.rows <= rows
    assert segments.highest < slots
    assert x.dtype is y.dtype
    assert x.stride(1) == y.stride(1) == 1
    shape = SHAPES[tiles.family]
    splits = shape.splits(inputs)
    bridge = torch.empty((tables, splits, tiles.rows, WIDEST), dtype=torch.float32, device=x.device)
    where = (pairs, slots * words, tiles.numbers, tiles.rows, tiles.count, bridge, WIDEST)
    options = {"PRECISION": precision(x.dtype), "NATIVE": native(x.dtype), "num_warps": shape.warps}
    size = {"M": int(tiles.family), "R": shape.ranks, "SPLITS": splits}
    kernels.shrink[(tiles.count, splits, tables)](x, x.stride(0), *where, inputs, K=shape.inputs, **size, **options)
    kernels.expand[(tiles.count, triton.cdiv(max(widths), shape.outputs), tables)](
        *(y, y.stride(0), *where, max(widths), pairs if columns is None else columns),
        JOINT=columns is not None,
        N=shape.outputs,
        **size,
        **options,
    )


def precision(dtype: torch.dtype) -> str:
    """Of a product of widened operands: float32's own, or TF32, which holds any 16-bit operand exactly."""
    return "ieee" if dtype is torch.float32 else "tf32"


def native(dtype: torch.dtype) -> bool:
    """Whether products run in this dtype; Triton's interpreter would multiply bfloat16's bits as integers."""
    return not (knobs.runtime.interpret and dtype is torch.bfloat16)
