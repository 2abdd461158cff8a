"""Packed linears against plain torch, with and without adapters, for every ISA that this processor runs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from inference.kernels import reference
from inference.kernels.linear import Linears, Packed, narrowest, packable
from inference.kernels.operands import DTYPES, Segments, Table

SLOTS = 6
NONE = Segments.of([], [])


def weight(outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    made: Tensor = torch.randn(outputs, inputs) / inputs**0.5
    return made.to(dtype).float()


def table(outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> Table:
    made = Table(SLOTS, inputs, outputs)
    for slot, rank in enumerate((16, 1, 40, 8, 3)):
        a, b = torch.randn(rank, inputs) / inputs**0.5, torch.randn(outputs, rank) / rank**0.5
        made.set(slot, a.to(dtype), b.to(dtype), scale=0.5 + slot)
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (31, 7), (64, 200), (333, 771), (96, 600)])
def test_it_equals_torch_for_any_number_of_rows(isa: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    outputs, inputs = shape
    w, bias = weight(outputs, inputs, dtype), torch.randn(outputs)
    linears = Linears([(Packed(w, bias), Table(SLOTS, inputs, outputs))])
    for rows in (1, 5, 13, 40, 260):
        x = torch.randn(rows, inputs)
        expected = functional.linear(x.double(), w.double(), bias.double()).float()
        torch.testing.assert_close(linears(x, NONE)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "slots", [[0] * 30, [row % SLOTS for row in range(30)], [-1] * 30, [-1] * 10 + [2] * 17 + [5, 1, 0]]
)
def test_siblings_and_their_adapters_are_what_each_would_be_alone(
    isa: str, slots: list[int], dtype: torch.dtype
) -> None:
    x, segments = torch.randn(30, 300), Segments.of(slots, [1] * 30)
    weights = [weight(outputs, 300) for outputs in (130, 40, 40)]
    tables = [table(130, 300, dtype), table(40, 300, dtype), Table(SLOTS, 300, 40)]
    given = Linears([(Packed(w, None), pairs) for w, pairs in zip(weights, tables, strict=True)])(x, segments)
    for y, w, pairs in zip(given, weights, tables, strict=True):
        expected = x.double() @ w.double().T
        reference.sgmm_(expected, x.double(), pairs.pairs, segments)
        torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=3e-5)


def test_a_row_is_bit_by_bit_the_same_whatever_shares_its_batch(isa: str) -> None:
    linears = Linears([(Packed(weight(70, 530), None), table(70, 530))])
    x = torch.randn(300, 530)
    slots = [row % (SLOTS + 1) - 1 for row in range(300)]
    together = linears(x, Segments.of(slots, [1] * 300))[0]
    for row in (0, 1, 6, 13, 250, 299):
        alone = linears(x[row : row + 1], Segments.of(slots[row : row + 1], [1]))[0]
        assert torch.equal(together[row], alone[0])


def test_packing_keeps_every_number_in_the_least_room(isa: str) -> None:
    for dtype in DTYPES:
        w = weight(50, 30, dtype)
        packed = Packed(w, None)
        assert packed.dtype is dtype
        assert torch.equal(packed.unpack(), w)
    assert narrowest(torch.tensor([1.0, float("inf")])) is torch.bfloat16
    assert narrowest(torch.tensor([1e-30, 1.001])) is torch.float32


def test_only_float32_on_a_cpu_is_packed() -> None:
    assert packable(torch.zeros(2, 2))
    assert not packable(torch.zeros(2, 2, dtype=torch.bfloat16))
    assert not packable(torch.zeros(2, 2, device="meta"))


def test_x_of_any_shape_and_stride_is_read(isa: str) -> None:
    w = weight(20, 24)
    linears = Linears([(Packed(w, None), Table(SLOTS, 24, 20))])
    x = torch.randn(2, 3, 48)[..., ::2]
    y = linears(x, NONE)[0]
    assert y.shape == (2, 3, 20)
    torch.testing.assert_close(y, x @ w.T, rtol=1e-5, atol=1e-5)
