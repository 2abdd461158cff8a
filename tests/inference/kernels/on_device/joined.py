"""Linears that read the same x, their adapters in one launch of each kernel, against one after the other.

`test_gpu_layer.py` runs this file under Triton's interpreter; where there is a GPU it runs on that.
"""

import os

import pytest
import torch

from inference.kernels import reference
from inference.kernels.gpu import sgmm as gpu
from inference.kernels.gpu.tiles import Family, Tiles
from inference.kernels.operands import Group, Segments, Table

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
INPUTS, WIDTHS, SLOTS = 300, [144, 16, 48], 5


def group() -> Group:
    """Of the linears' adapters some are missing, and ranks differ."""
    tables = [Table(SLOTS, INPUTS, width, DEVICE) for width in WIDTHS]
    joined = Group(tables)
    for number, table in enumerate(tables):
        for slot in set(range(SLOTS)) - {number}:
            rank = (3, 16, 40)[(slot + number) % 3]
            a, b = torch.randn(rank, INPUTS) / INPUTS**0.5, torch.randn(table.outputs, rank) / rank**0.5
            table.set(slot, a.to(DEVICE), b.to(DEVICE), scale=0.5 + slot / 4)
    return joined


@pytest.mark.parametrize("family", Family)
def test_a_group_in_one_launch_is_bit_by_bit_its_tables_one_after_the_other(family: Family) -> None:
    torch.manual_seed(0)
    joined = group()
    x, wide = torch.randn(6, INPUTS).to(DEVICE), torch.randn(6, joined.outputs + 32).to(DEVICE)
    y, before = wide[:, 16 : 16 + joined.outputs], wide.clone()
    segments = Segments.of([3, -1, 0, 1, 2, 3], [1] * 6)
    segments.place(Tiles(family, 6, SLOTS, DEVICE))
    alone, expected = y.clone(), y.double()
    for table, own, exact in zip(
        joined.tables, torch.split(alone, WIDTHS, dim=1), torch.split(expected, WIDTHS, dim=1), strict=True
    ):
        gpu.sgmm_(own, x, table, segments)
        reference.sgmm_(exact, x.double(), table.pairs, segments)
    gpu.joint_sgmm_(y, x, joined, segments)
    assert torch.equal(y, alone)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=3e-5)
    assert torch.equal(wide[:, :16], before[:, :16])
    assert torch.equal(wide[:, -16:], before[:, -16:])
    assert torch.equal(y[1], before[1, 16:-16])
