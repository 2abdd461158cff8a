"""The GPU's segmented-gather GEMM against its slow twin: under Triton's interpreter, or on a GPU where there is one.

`test_gpu.py` runs this file in a process of its own, since the interpreter is chosen before triton is imported.
"""

import pytest
import torch
from torch import Tensor

from inference.kernels import reference
from inference.kernels.gpu import sgmm as gpu
from inference.kernels.gpu.tiles import Family, Tiles
from inference.kernels.operands import DTYPES, Segments, Table
from tests.inference.kernels.on_device.cases import DEVICE, cases
from tests.inference.kernels.on_device.products import products_in_one_order

INPUTS, OUTPUTS, SLOTS = 530, 140, 7
RANKS = {"16": [16], "mixed": [16, 1, 40, 3, 8, 33, 5]}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rows_of(popularity: str, rows: int) -> list[int]:
    """The slot of each row; -1 for none."""
    if popularity == "one":
        return [3] * rows
    if popularity == "each":
        return [row % SLOTS for row in range(rows)]
    if popularity == "empty":
        return [-1] * rows
    weights = {"zipf": 1 / torch.arange(1.0, SLOTS + 2), "skewed": 2.0 ** -torch.arange(0.0, SLOTS + 1)}[popularity]
    return (torch.multinomial(weights, rows, replacement=True) - 1).tolist()


def table(ranks: list[int], dtype: torch.dtype = torch.float32, empty: tuple[int, ...] = ()) -> Table:
    made = Table(SLOTS, INPUTS, OUTPUTS, DEVICE)
    for slot in set(range(SLOTS)) - set(empty):
        rank = ranks[slot % len(ranks)]
        a, b = torch.randn(rank, INPUTS) / INPUTS**0.5, torch.randn(OUTPUTS, rank) / rank**0.5
        made.set(slot, a.to(DEVICE, dtype), b.to(DEVICE, dtype), scale=0.5 + slot / 4)
    return made


def batch(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, INPUTS).to(DEVICE, dtype), torch.randn(rows, OUTPUTS).to(DEVICE, dtype)


def check(y: Tensor, x: Tensor, pairs: Table, segments: Segments) -> None:
    """Run the kernels; hold them to the twin, and rows without an adapter to their bits."""
    before, expected = y.clone(), y.double()
    reference.sgmm_(expected, x.double(), pairs.pairs, segments)
    gpu.sgmm_(y, x, pairs, segments)
    tolerance = TOLERANCE[x.dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=3 * tolerance)
    used = {row for start, end, slot in segments if pairs.pairs[slot] is not None for row in range(start, end)}
    others = sorted(set(range(len(y))) - used)
    assert torch.equal(y[others], before[others])


@pytest.mark.parametrize(
    ("dtype", "ranks", "popularity"), cases(DTYPES, list(RANKS), ["one", "each", "zipf", "skewed", "empty"])
)
def test_it_equals_its_slow_twin(dtype: torch.dtype, ranks: str, popularity: str) -> None:
    pairs = table(RANKS[ranks], dtype)
    for rows in (1, 9):
        x, y = batch(rows, dtype)
        check(y, x, pairs, Segments.of(rows_of(popularity, rows), [1] * rows))


@pytest.mark.parametrize(
    ("dtype", "adapters", "lengths"), cases(DTYPES, DTYPES, [[1] * 6, [20, 7, 1, 0, 2, 3], [70, 0, 65, 0, 66, 0]])
)
def test_adapters_of_any_dtype_serve_activations_of_any_other(
    dtype: torch.dtype, adapters: torch.dtype, lengths: list[int]
) -> None:
    pairs = table(RANKS["mixed"], adapters)
    x, y = batch(sum(lengths), dtype)
    check(y, x, pairs, Segments.of([0, 5, -1, 2, 6, 3], lengths))


def test_the_rows_per_slot_choose_the_family() -> None:
    assert Segments.of([0, 1, 2, 2], [1, 1, 1, 1]).tiles(torch.device(DEVICE)).family is Family.PER_ROW
    assert Segments.of([0, 1, 0], [10, 3, 1]).tiles(torch.device(DEVICE)).family is Family.GROUPED
    assert Segments.of([0, 1], [100, 100]).tiles(torch.device(DEVICE)).family is Family.LONG


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [9, 20, 1, 5, 9], [70, 90, 1, 60, 2]])
def test_slots_without_a_pair_and_neighbouring_columns_are_not_touched(lengths: list[int]) -> None:
    rows = sum(lengths)
    fused = torch.randn(rows, 50 + OUTPUTS + 70).to(DEVICE)
    before = fused.clone()
    x = torch.randn(rows, 2 * INPUTS).to(DEVICE)[:, :INPUTS]
    pairs = table([16], empty=(1, 4))
    check(fused[:, 50 : 50 + OUTPUTS], x, pairs, Segments.of([2, -1, 1, 5, 4], lengths))
    assert torch.equal(fused[:, :50], before[:, :50])
    assert torch.equal(fused[:, 50 + OUTPUTS :], before[:, 50 + OUTPUTS :])


@products_in_one_order()
@pytest.mark.parametrize("family", Family)
def test_a_row_is_the_same_bit_by_bit_whatever_shares_its_batch(family: Family) -> None:
    pairs = table(RANKS["mixed"])
    x, y = batch(12)

    def run(slots: list[int], rows: slice) -> Tensor:
        out, segments = y[rows].clone(), Segments.of(slots, [1] * len(slots))
        segments.place(Tiles(family, len(slots), SLOTS, DEVICE))
        gpu.sgmm_(out, x[rows], pairs, segments)
        return out

    together = run([2] * 12, slice(12))
    mixed = run([2 if 5 <= row < 9 else row % SLOTS for row in range(12)], slice(12))
    assert torch.equal(mixed[5:9], together[5:9])
    assert torch.equal(run([2] * 4, slice(5, 9)), together[5:9])


@pytest.mark.parametrize("family", Family)
def test_one_room_serves_every_step_that_fits_it_as_a_captured_graph_needs(family: Family) -> None:
    pairs, room = table(RANKS["mixed"]), Tiles(family, 12, SLOTS, DEVICE)
    address, grid = room.numbers.data_ptr(), room.count
    for slots in ([0, 1, 2, 3], [-1, 6, 6, 6, 5] * 2, [5] * 12, [4]):
        x, y = batch(12)
        segments = Segments.of(slots, [1] * len(slots))
        segments.place(room)
        check(y, x, pairs, segments)
    assert (room.numbers.data_ptr(), room.count) == (address, grid)


def test_a_refilled_slot_serves_its_new_pair_at_the_address_a_graph_knows() -> None:
    pairs, runs = table([16]), Segments.of([3], [4])
    address = pairs.device_pairs.data_ptr()
    x, y = batch(4)
    pairs.set(3, torch.randn(5, INPUTS).to(DEVICE) / 23, torch.randn(OUTPUTS, 5).to(DEVICE), scale=2.0)
    check(y, x, pairs, runs)
    pairs.clear(3)
    check(y, x, pairs, runs)
    assert pairs.device_pairs.data_ptr() == address


@pytest.mark.skipif(DEVICE == "cpu", reason="the public op takes the C++ kernels on a CPU")
def test_the_public_op_takes_these_kernels_and_a_captured_graph_replays_other_steps() -> None:
    from inference.kernels.sgmm import sgmm_

    pairs, room = table(RANKS["mixed"]), Tiles(Family.PER_ROW, 8, SLOTS, DEVICE)
    x, y = batch(8)
    before = y.clone()
    warm = Segments.of([0], [8])
    warm.place(room)
    sgmm_(y, x, pairs, warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sgmm_(y, x, pairs, warm)
    for slots in ([1, 2, 3, 4, -1, 6, 0, 0], [5] * 8):
        segments = Segments.of(slots, [1] * 8)
        expected = before.double()
        reference.sgmm_(expected, x.double(), pairs.pairs, segments)
        y.copy_(before)
        segments.place(room)
        graph.replay()
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(
    "broken",
    [
        lambda y, x, pairs: gpu.sgmm_(y, x, pairs, Segments.of([0], [6])),
        lambda y, x, pairs: gpu.sgmm_(y, x, pairs, Segments.of([SLOTS], [5])),
        lambda y, x, pairs: gpu.sgmm_(y, x[:, 1:], pairs, Segments.of([0], [5])),
        lambda y, x, pairs: gpu.sgmm_(y[:4], x, pairs, Segments.of([0], [5])),
        lambda y, x, pairs: gpu.sgmm_(y.half(), x, pairs, Segments.of([0], [5])),
    ],
)
def test_memory_outside_the_tensors_is_never_reached(broken) -> None:  # type: ignore[no-untyped-def]
    x, y = batch(5)
    with pytest.raises(AssertionError):
        broken(y, x, table([8]))
