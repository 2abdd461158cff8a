"""The segmented-gather GEMM against its slow twin, for every ISA that this processor runs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inference.kernels import reference
from inference.kernels.library import library
from inference.kernels.operands import DTYPES, Segments, Stack, Table
from inference.kernels.sgmm import sgmm_

INPUTS, OUTPUTS, SLOTS = 200, 330, 12
RANKS = {"1": [1], "3": [3], "8": [8], "16": [16], "64": [64], "mixed": [16, 1, 130, 3, 8, 64, 5]}


def popularity(name: str, rows: int) -> list[int]:
    """The slot of each row; -1 for none."""
    generator = torch.Generator().manual_seed(1)
    weights = {"zipf": 1 / torch.arange(1.0, SLOTS + 2), "skewed": 2.0 ** -torch.arange(0.0, SLOTS + 1)}
    if name == "one":
        return [3] * rows
    if name == "each":
        return [row % SLOTS for row in range(rows)]
    if name == "empty":
        return [-1] * rows
    return sorted((torch.multinomial(weights[name], rows, replacement=True, generator=generator) - 1).tolist())


def table(ranks: list[int], dtype: torch.dtype = torch.float32, empty: tuple[int, ...] = ()) -> Table:
    made = Table(SLOTS, INPUTS, OUTPUTS)
    for slot in set(range(SLOTS)) - set(empty):
        rank = ranks[slot % len(ranks)]
        a, b = torch.randn(rank, INPUTS) / INPUTS**0.5, torch.randn(OUTPUTS, rank) / rank**0.5
        made.set(slot, a.to(dtype), b.to(dtype), scale=0.5 + slot)
    return made


def twin(y: Tensor, x: Tensor, pairs: Table, segments: Segments) -> Tensor:
    exact = y.double()
    reference.sgmm_(exact, x.double(), pairs.pairs, segments)
    return exact.float()


@pytest.mark.parametrize("segments", ["one", "each", "zipf", "skewed", "empty"])
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_equals_its_slow_twin(isa: str, dtype: torch.dtype, ranks: str, segments: str) -> None:
    pairs = table(RANKS[ranks], dtype)
    for rows in (1, 2, 17, 100):
        slots = popularity(segments, rows)
        runs = Segments.of(slots, [1] * rows)
        x, y = torch.randn(rows, INPUTS), torch.randn(rows, OUTPUTS)
        expected = twin(y, x, pairs, runs)
        sgmm_(y, x, pairs, runs)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=3e-5)
        assert runs.empty == (max(slots) < 0)


def test_rows_without_an_adapter_and_neighbouring_columns_are_not_touched(isa: str) -> None:
    fused = torch.randn(9, 50 + OUTPUTS + 70)
    before = fused.clone()
    x = torch.randn(9, 2 * INPUTS)[:, :INPUTS]
    pairs = table([16])
    runs = Segments.of([-1, 2, -1, 5, -1], [2, 3, 1, 1, 2])
    y = fused[:, 50 : 50 + OUTPUTS]
    expected = twin(y, x, pairs, runs)
    sgmm_(y, x, pairs, runs)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=3e-5)
    assert torch.equal(y[[0, 1, 5, 7, 8]], before[[0, 1, 5, 7, 8], 50 : 50 + OUTPUTS])
    assert torch.equal(fused[:, :50], before[:, :50])
    assert torch.equal(fused[:, 50 + OUTPUTS :], before[:, 50 + OUTPUTS :])


def test_a_slot_without_a_pair_here_and_a_segment_without_rows_add_nothing(isa: str) -> None:
    pairs = table([8], empty=(1, 4))
    runs = Segments(starts=(0, 2, 2, 5), ends=(2, 2, 5, 6), slots=(1, 0, 4, 2))
    x, y = torch.randn(6, INPUTS), torch.randn(6, OUTPUTS)
    before = y.clone()
    sgmm_(y, x, pairs, runs)
    assert torch.equal(y[:5], before[:5])
    assert not torch.equal(y[5], before[5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bit_by_bit_whatever_shares_its_batch(isa: str, dtype: torch.dtype) -> None:
    pairs = table(RANKS["mixed"], dtype)
    rows = 90
    x, y = torch.randn(rows, INPUTS), torch.randn(rows, OUTPUTS)
    together = y.clone()
    sgmm_(together, x, pairs, Segments.of([2] * rows, [1] * rows))
    for start, end in ((0, 1), (1, 4), (4, 41), (41, 90)):
        mixed = y.clone()
        slots = [2 if start <= row < end else (row * 5) % SLOTS for row in range(rows)]
        sgmm_(mixed, x, pairs, Segments.of(slots, [1] * rows))
        alone = y[start:end].clone()
        sgmm_(alone, x[start:end], pairs, Segments.of([2], [end - start]))
        assert torch.equal(mixed[start:end], together[start:end])
        assert torch.equal(alone, together[start:end])


def test_a_refilled_slot_serves_its_new_pair_only(isa: str) -> None:
    pairs, runs = table([16]), Segments.of([3], [4])
    x = torch.randn(4, INPUTS)
    pairs.set(3, torch.randn(5, INPUTS), torch.randn(OUTPUTS, 5), scale=2.0)
    y = torch.zeros(4, OUTPUTS)
    expected = twin(y, x, pairs, runs)
    sgmm_(y, x, pairs, runs)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-3)
    pairs.clear(3)
    sgmm_(y, x, pairs, runs)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-3)


def test_adapters_are_read_in_place_from_any_view_of_one_buffer(isa: str) -> None:
    blob = torch.randn(2 * (INPUTS + OUTPUTS) * 4 + 3)
    a, b = blob[3 : 3 + 4 * INPUTS].view(4, INPUTS), blob[-4 * OUTPUTS :].view(OUTPUTS, 4)
    pairs, runs = Table(1, INPUTS, OUTPUTS), Segments.of([0], [3])
    pairs.set(0, a, b, scale=1.0)
    x, y = torch.randn(3, INPUTS), torch.zeros(3, OUTPUTS)
    a.mul_(2)
    expected = twin(y, x, pairs, runs)
    sgmm_(y, x, pairs, runs)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-3)


def test_neighbouring_sequences_of_one_slot_become_one_run() -> None:
    runs = Segments.of([3, 3, -1, 3, 0, 0], [1, 4, 2, 1, 0, 6])
    assert list(runs) == [(0, 5, 3), (7, 8, 3), (8, 14, 0)]
    assert Segments.of([], []).empty


def test_other_dtypes_than_float32_take_the_reference() -> None:
    pairs, runs = table([8], torch.bfloat16), Segments.of([1, 2], [3, 2])
    x, y = torch.randn(5, INPUTS, dtype=torch.bfloat16), torch.zeros(5, OUTPUTS, dtype=torch.bfloat16)
    expected = twin(y, x, pairs, runs)
    sgmm_(y, x, pairs, runs)
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


def test_the_op_is_registered_and_traces_without_data() -> None:
    pairs, runs = table([8]), Segments.of([1], [5])
    x, y = torch.randn(5, INPUTS), torch.zeros(5, OUTPUTS)
    torch.library.opcheck(
        torch.ops.lorayard.sgmm_.default,
        (y, x, pairs.handle, runs.handle),
        test_utils=("test_schema", "test_faketensor"),
    )
    torch.ops.lorayard.sgmm_(y.to("meta"), x.to("meta"), pairs.handle, runs.handle)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(4, INPUTS + 1), torch.zeros(OUTPUTS, 4)),
        (torch.zeros(4, INPUTS), torch.zeros(OUTPUTS, 5)),
        (torch.zeros(4, INPUTS), torch.zeros(OUTPUTS, 4, dtype=torch.bfloat16)),
        (torch.zeros(INPUTS, 4).T, torch.zeros(OUTPUTS, 4)),
        (torch.zeros(4, INPUTS, dtype=torch.float64), torch.zeros(OUTPUTS, 4, dtype=torch.float64)),
    ],
)
def test_a_pair_that_does_not_fit_the_linear_never_gets_in(a: Tensor, b: Tensor) -> None:
    pairs = Table(2, INPUTS, OUTPUTS)
    with pytest.raises(AssertionError):
        pairs.set(0, a, b, scale=1.0)
    assert not pairs.any


@pytest.mark.parametrize(
    "broken",
    [
        lambda y, x, pairs: sgmm_(y, x, pairs, Segments.of([0], [6])),
        lambda y, x, pairs: sgmm_(y, x, pairs, Segments.of([SLOTS], [5])),
        lambda y, x, pairs: sgmm_(y, x[:, 1:], pairs, Segments.of([0], [5])),
        lambda y, x, pairs: sgmm_(y[:4], x, pairs, Segments.of([0], [5])),
    ],
)
def test_memory_outside_the_tensors_is_never_reached(broken: Callable[[Tensor, Tensor, Table], None]) -> None:
    assert library() is not None
    with pytest.raises(AssertionError):
        broken(torch.zeros(5, OUTPUTS), torch.zeros(5, INPUTS), table([8]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_has_the_pair_of_each_slot_and_linear_in_its_place(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stack = Stack(slots=3, count=4, inputs=24, outputs=40)
    a, b = torch.randn(4, 5, 24).to(dtype), torch.randn(4, 40, 5).to(dtype)
    stack.fill(2, a, b, 0.5)
    x, y = torch.randn(9, 24), torch.zeros(9, 40)
    segments = Segments.of([2 * 4 + 1, 0 * 4 + 1, -1, 2 * 4 + 3], [3, 2, 1, 3])
    sgmm_(y, x, stack, segments)
    expected = torch.zeros(9, 40)
    for rows, linear in ((slice(0, 3), 1), (slice(6, 9), 3)):
        expected[rows] = 0.5 * (x[rows] @ a[linear].float().T) @ b[linear].float().T
    assert torch.allclose(y, expected, atol=1e-4)
    stack.clear(2)
    stack.clear(1)
    again = torch.zeros(9, 40)
    sgmm_(again, x, stack, segments)
    assert not again.any()
    assert not stack.any
