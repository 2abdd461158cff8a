"""y[s[i]:s[i+1]] += scale[g[i]] * (x[s[i]:s[i+1]] @ A[g[i]].T) @ B[g[i]].T

The segmented-gather GEMM. Knows slots and pointers; never what an adapter is or how rows came to share one.

    x  [rows, in]    float32 on a CPU, bfloat16 and float16 too on a GPU; unit stride along `in`, any row stride
    y  [rows, out]   added to in place; unit stride along `out`, any row stride (a slice of a fused output will do)
    A  [rank, in], B [out, rank]   contiguous, float32, bfloat16 or float16, read where they lie; ranks mix freely
    s, g             the step's `Segments`: runs of rows and the slot each uses; rows in no run are not touched

    segments = Segments.of(slots=[3, 3, -1, 0], lengths=[1, 1, 5, 64])     # once per step; -1: no adapter
    table = Table(slots=16, inputs=896, outputs=4864)                       # once per linear
    table.set(3, a, b, scale); table.clear(3)
    sgmm_(y, x, table, segments)

A row's result depends on that row and its pair alone, bit by bit, whatever else is in the batch; on a GPU within one
family of kernels (`gpu.tiles.Family`), which the step's rows per slot choose. The registered op, for graphs and traces,
is `torch.ops.lorayard.sgmm_(y, x, table.handle, segments.handle)`.
"""

import torch
from torch import Tensor

from inference.kernels import reference
from inference.kernels.library import library, ops
from inference.kernels.operands import DTYPES, Group, Segments, Table, segments_by_handle, tables_by_handle


def sgmm_(y: Tensor, x: Tensor, table: Table, segments: Segments) -> None:
    """Add every segment's low-rank product to y in place. The module's first lines give the meaning and shapes."""
    if not segments.slots:
        return None
    if y.is_cuda and y.dtype in DTYPES and (table.any or segments.fixed):
        from inference.kernels.gpu import sgmm as gpu  # the CPU never pays for triton

        return gpu.sgmm_(y, x, table, segments)
    if not table.any:
        return None
    if not y.is_cpu:
        return reference.sgmm_(y, x, table.pairs, segments)
    native = library()
    (y_row, y_unit), (x_row, x_unit) = y.stride(), x.stride()
    if native is None or y.dtype is not torch.float32 or x.dtype is not torch.float32 or y_unit != 1 or x_unit != 1:
        return reference.sgmm_(y, x, table.pairs, segments)
    rows, inputs = x.shape
    assert table.device_pairs.is_cpu
    assert inputs == table.inputs
    assert y.shape == (rows, table.outputs)
    assert segments.rows <= rows
    assert segments.highest < len(table.pairs)
    native.sgmm(y.data_ptr(), y_row, x.data_ptr(), x_row, table.address, segments.address)
    return None


def joint_sgmm_(y: Tensor, x: Tensor, group: Group, segments: Segments) -> None:
    """`sgmm_` of each of the group's tables on its columns of y [rows, all outputs]."""
    if y.is_cuda and y.dtype in DTYPES:
        if segments.slots and (group.any or segments.fixed):
            from inference.kernels.gpu import sgmm as gpu  # the CPU never pays for triton

            gpu.joint_sgmm_(y, x, group, segments)
        return
    for table, columns in zip(group.tables, torch.split(y, group.widths, dim=1), strict=True):
        sgmm_(columns, x, table, segments)


def _run(y: Tensor, x: Tensor, table_handle: int, segments_handle: int) -> None:
    sgmm_(y, x, tables_by_handle[table_handle], segments_by_handle[segments_handle])


def _trace(y: Tensor, x: Tensor, table_handle: int, segments_handle: int) -> None:
    """Shapes only: the op returns nothing."""


# The op is for graphs and traces; the engine calls sgmm_ itself. Right after a GEMM, with Python's own code out of the
# caches, the dispatcher took 7 us of a call's 21 (2 of 4 when warm), and `torch.library.custom_op` 15 even when warm.
ops.define("sgmm_(Tensor(a!) y, Tensor x, int table, int segments) -> ()")
ops.impl("sgmm_", _run, "CompositeExplicitAutograd")
ops.impl("sgmm_", _trace, "Meta")
