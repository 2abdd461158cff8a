"""The GPU's paged attention against its slow twin: under Triton's interpreter, or on a GPU where there is one.

`test_gpu.py` runs this file in a process of its own, since the interpreter is chosen before triton is imported.
"""

import pytest
import torch
from torch import Tensor

from inference.kernels import reference
from inference.kernels.attention import Layout
from inference.kernels.gpu import attention as gpu
from inference.kernels.gpu.layout import Placed
from tests.inference.kernels.on_device.cases import DEVICE, cases
from tests.inference.kernels.on_device.products import products_in_one_order

Step = tuple[list[int], list[int]]  # queries and contexts
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}
MIXED = ([1, 20, 1, 0, 17], [70, 90, 1, 33, 17])  # decodes, a later chunk, an idle one, a whole prompt
DECODES = ([1, 1, 1], [70, 1, 64])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Pool:
    """A layer's cache, a head's tokens together in memory as the engine has it, whose free blocks hold NaN."""

    def __init__(
        self,
        contexts: list[int],
        kv_heads: int,
        dim: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        needed = [-(-context // block_size) for context in contexts]
        order = torch.randperm(sum(needed) + 3).tolist()
        self.blocks = [[order.pop() for _ in range(count)] for count in needed]
        self.contexts, self.block_size = contexts, block_size
        shape = (2, sum(needed) + 3, kv_heads, block_size, dim)
        self.keys, self.values = torch.full(shape, float("nan"), dtype=dtype, device=DEVICE).transpose(2, 3)
        for blocks, context in zip(self.blocks, contexts, strict=True):
            layout = Layout.of([context], [context], [blocks], block_size)
            rows = torch.randn(2, context, kv_heads, dim).to(DEVICE, dtype)
            reference.store_kv(rows[0], rows[1], self.keys, self.values, layout.slots)

    def layout(self, queries: list[int], contexts: list[int] | None = None) -> Layout:
        return Layout.of(queries, contexts or self.contexts, self.blocks, self.block_size)


def check(q: Tensor, pool: Pool, layout: Layout, window: int = 0, softcap: float = 0.0) -> None:
    scale = q.shape[2] ** -0.5
    expected = reference.paged_attention(
        q.double(),
        pool.keys.double(),
        pool.values.double(),
        layout.block_tables,
        query_starts=layout.query_starts.tolist(),
        context_lengths=layout.context_lengths.tolist(),
        scale=scale,
        window=window,
        softcap=softcap,
    )
    placed = Placed.of(layout, DEVICE)
    got = gpu.paged_attention(q, pool.keys, pool.values, placed, scale, window=window, softcap=softcap)
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[q.dtype], atol=TOLERANCE[q.dtype])


@pytest.mark.parametrize(
    ("step", "shape", "limits"),
    cases(
        [MIXED, DECODES],
        [(2, 2, 16), (7, 1, 20), (6, 2, 64)],
        [(0, 0.0), (37, 0.0), (0, 30.0), (5, 2.0)],
    ),
)
def test_it_equals_its_slow_twin(step: Step, shape: tuple[int, int, int], limits: tuple[int, float]) -> None:
    (queries, contexts), (heads, kv_heads, dim), (window, softcap) = step, shape, limits
    pool = Pool(contexts, kv_heads, dim)
    check(torch.randn(sum(queries), heads, dim).to(DEVICE), pool, pool.layout(queries), window, softcap)


@pytest.mark.parametrize(
    ("step", "dtype", "limits"), cases([MIXED, DECODES], [torch.bfloat16, torch.float16], [(0, 0.0), (37, 30.0)])
)
def test_sixteen_bits_too(step: Step, dtype: torch.dtype, limits: tuple[int, float]) -> None:
    (queries, contexts), (window, softcap) = step, limits
    pool = Pool(contexts, 2, 32, dtype=dtype)
    check(torch.randn(sum(queries), 6, 32).to(DEVICE, dtype), pool, pool.layout(queries), window, softcap)


def test_more_heads_to_a_key_head_than_one_program_takes() -> None:
    pool = Pool([40, 3], kv_heads=1, dim=16)
    check(torch.randn(18, 71, 16).to(DEVICE), pool, pool.layout([17, 1]))
    check(torch.randn(2, 71, 16).to(DEVICE), pool, pool.layout([1, 1]))


@pytest.mark.parametrize("block_size", [1, 8, 24, 128])
def test_blocks_may_be_of_any_size(block_size: int) -> None:
    pool = Pool([50, 35], kv_heads=2, dim=32, block_size=block_size)
    check(torch.randn(11, 4, 32).to(DEVICE), pool, pool.layout([10, 1]))


def test_transposed_views_are_read_and_one_layer_of_a_larger_cache_is_written_in_place() -> None:
    pool = Pool([40], kv_heads=2, dim=32)
    layers = torch.full((*pool.keys.shape[:1], 2, 3, *pool.keys.shape[1:]), float("nan"), device=DEVICE)
    pool.keys, pool.values = layers[:, 0, 1], layers[:, 1, 1]
    fused = torch.randn(40, (6 + 2 + 2) * 32).to(DEVICE)
    parts = (fused[:, :192], fused[:, 192:256], fused[:, 256:])
    q, key, value = (part.view(1, 40, -1, 32).transpose(1, 2)[0].transpose(0, 1) for part in parts)
    layout = pool.layout([40])
    gpu.store_kv(key, value, pool.keys, pool.values, layout.slots.to(DEVICE))
    check(q, pool, layout)
    assert layers[:, :, [0, 2]].isnan().all()


def test_values_may_be_narrower_than_keys() -> None:
    pool = Pool([40], kv_heads=2, dim=32)
    pool.values = pool.values[..., :16].clone()
    check(torch.randn(7, 4, 32).to(DEVICE), pool, pool.layout([7]))


def test_large_scores_neither_overflow_nor_turn_into_nan() -> None:
    pool = Pool([70], kv_heads=1, dim=16)
    layout = pool.layout([70])
    q = 1e4 * torch.randn(70, 2, 16).to(DEVICE)
    got = gpu.paged_attention(q, pool.keys, pool.values, Placed.of(layout, DEVICE), 1.0, window=3)
    assert got.isfinite().all()


@products_in_one_order()
@pytest.mark.parametrize("window", [0, 50])
def test_a_token_is_the_same_bit_by_bit_in_any_batch_and_any_chunk(window: int) -> None:
    pool = Pool([100, 20, 33], kv_heads=1, dim=32)
    whole = torch.randn(100, 2, 32).to(DEVICE)

    def attend(q: Tensor, layout: Layout) -> Tensor:
        return gpu.paged_attention(q, pool.keys, pool.values, Placed.of(layout, DEVICE), 0.2, window=window)

    expected = attend(whole, Layout.of([100], [100], pool.blocks[:1], 16))
    for start, end in ((0, 33), (33, 90), (99, 100)):
        layout = pool.layout([end - start, 5, 1], [end, 20, 33])
        got = attend(torch.cat([whole[start:end], torch.randn(6, 2, 32).to(DEVICE)]), layout)
        torch.testing.assert_close(got[: end - start], expected[start:end], rtol=0, atol=0)


@products_in_one_order()
def test_one_room_serves_every_decode_that_fits_it_and_writes_nothing_for_its_padding() -> None:
    pool = Pool([60, 33, 1], kv_heads=2, dim=16)
    room = Placed(8, 8, 8, query=1, context=128, device=DEVICE)
    for used in ([0, 1, 2], [1], [2, 0]):
        layout = Layout.of(
            [1] * len(used), [pool.contexts[i] for i in used], [pool.blocks[i] for i in used], pool.block_size
        )
        room.load(layout)
        padded = layout.on(room)
        before = pool.keys.clone()
        rows = torch.randn(2, 8, 2, 16).to(DEVICE)
        gpu.store_kv(rows[0], rows[1], pool.keys, pool.values, padded.slots)
        assert (pool.keys != before).nan_to_num().any(-1).any(-1).sum() <= len(used) + before.isnan().any(-1).sum()
        at = layout.slots.to(DEVICE)
        assert torch.equal(pool.keys[at // 16, at % 16], rows[0, : len(used)])
        q = torch.randn(8, 4, 16).to(DEVICE)
        got = gpu.paged_attention(q, pool.keys, pool.values, room, 0.25)
        alone = gpu.paged_attention(q[: len(used)], pool.keys, pool.values, Placed.of(layout, DEVICE), 0.25)
        assert torch.equal(got[: len(used)], alone)
