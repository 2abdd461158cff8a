"""Paged attention against its slow twin, for every ISA that this processor runs."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from inference.kernels import reference
from inference.kernels.attention import Layout, paged_attention, store_kv

BLOCK = 16


class Pool:
    """A layer's KV cache whose free blocks hold NaN, and the sequences in it."""

    def __init__(self, contexts: list[int], kv_heads: int, dim: int, block_size: int = BLOCK) -> None:
        needed = [-(-context // block_size) for context in contexts]
        order = torch.randperm(sum(needed) + 3).tolist()
        self.blocks = [[order.pop() for _ in range(count)] for count in needed]
        self.contexts = contexts
        self.block_size = block_size
        self.keys, self.values = torch.full((2, sum(needed) + 3, block_size, kv_heads, dim), float("nan"))
        self.written = [(torch.randn(n, kv_heads, dim), torch.randn(n, kv_heads, dim)) for n in contexts]
        for blocks, context, (key, value) in zip(self.blocks, contexts, self.written, strict=True):
            layout = Layout.of([context], [context], [blocks], block_size)
            store_kv(key, value, self.keys, self.values, layout.slots)

    def layout(self, queries: list[int], contexts: list[int] | None = None) -> Layout:
        return Layout.of(queries, contexts or self.contexts, self.blocks, self.block_size)


def twin(q: Tensor, pool: Pool, layout: Layout, scale: float, window: int = 0, softcap: float = 0.0) -> Tensor:
    return reference.paged_attention(
        q.double(),
        pool.keys.double(),
        pool.values.double(),
        layout.block_tables,
        query_starts=layout.query_starts.tolist(),
        context_lengths=layout.context_lengths.tolist(),
        scale=scale,
        window=window,
        softcap=softcap,
    ).float()


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (37, 0.0), (0, 30.0), (5, 2.0)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (14, 2), (71, 1)])
@pytest.mark.parametrize("dim", [16, 20, 64, 80, 96, 128, 256])
def test_it_equals_its_slow_twin(isa: str, dim: int, heads: int, kv_heads: int, window: int, softcap: float) -> None:
    queries, contexts = [1, 70, 1, 0, 17], [150, 201, 1, 33, 17]  # decodes, a later chunk, an idle one, a whole prompt
    pool = Pool(contexts, kv_heads, dim)
    layout = pool.layout(queries)
    q = torch.randn(sum(queries), heads, dim)
    expected = twin(q, pool, layout, dim**-0.5, window, softcap)
    got = paged_attention(q, pool.keys, pool.values, layout, dim**-0.5, window=window, softcap=softcap)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_slow_twin_is_torchs_own_attention() -> None:
    pool = Pool([50], kv_heads=2, dim=32)
    q = torch.randn(50, 6, 32)
    key, value = (rows.repeat_interleave(3, dim=1).transpose(0, 1) for rows in pool.written[0])
    expected = scaled_dot_product_attention(q.transpose(0, 1), key, value, is_causal=True).transpose(0, 1)
    torch.testing.assert_close(twin(q, pool, pool.layout([50]), 32**-0.5), expected)


@pytest.mark.parametrize("block_size", [1, 8, 24, 128])
def test_blocks_may_be_of_any_size(isa: str, block_size: int) -> None:
    pool = Pool([100, 65], kv_heads=2, dim=64, block_size=block_size)
    layout = pool.layout([10, 1])
    q = torch.randn(11, 4, 64)
    got = paged_attention(q, pool.keys, pool.values, layout, 0.125)
    torch.testing.assert_close(got, twin(q, pool, layout, 0.125), rtol=1e-5, atol=1e-5)


def test_transposed_views_and_one_layer_of_a_larger_cache_are_read_in_place(isa: str) -> None:
    pool = Pool([40], kv_heads=2, dim=64)
    layers = torch.full((*pool.keys.shape[:1], 2, 3, *pool.keys.shape[1:]), float("nan"))
    keys, values = layers[:, 0, 1], layers[:, 1, 1]
    fused = torch.randn(40, (6 + 2 + 2) * 64)
    parts = (fused[:, :384], fused[:, 384:512], fused[:, 512:])
    q, key, value = (part.view(1, 40, -1, 64).transpose(1, 2) for part in parts)
    layout = pool.layout([40])
    store_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), keys, values, layout.slots)
    got = paged_attention(q[0].transpose(0, 1), keys, values, layout, 0.125)
    repeated = [part.repeat_interleave(3, dim=1) for part in (key, value)]
    expected = scaled_dot_product_attention(q, repeated[0], repeated[1], is_causal=True)[0].transpose(0, 1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert layers[:, :, [0, 2]].isnan().all()


def test_values_may_be_narrower_than_keys() -> None:
    pool = Pool([40], kv_heads=2, dim=32)
    layout = pool.layout([7])
    q, narrow = torch.randn(7, 4, 32), pool.values[..., :16].clone()
    got = paged_attention(q, pool.keys, narrow, layout, 0.2)
    torch.testing.assert_close(got, twin(q, pool, layout, 0.2)[..., :16], rtol=1e-5, atol=1e-5)


def test_storing_writes_the_new_tokens_and_nothing_else() -> None:
    pool = Pool([20, 7], kv_heads=2, dim=16)
    before = pool.keys.clone()
    layout = pool.layout([3, 0])
    key, value = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    store_kv(key, value, pool.keys, pool.values, layout.slots)
    at = (layout.slots // BLOCK, layout.slots % BLOCK)
    assert torch.equal(pool.keys[at], key)
    assert torch.equal(pool.values[at], value)
    before[at] = key
    torch.testing.assert_close(pool.keys, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(("heads", "dim"), [(2, 80), (14, 64)])
def test_a_token_is_the_same_bit_by_bit_in_any_batch_and_any_chunk(isa: str, heads: int, dim: int, window: int) -> None:
    pool = Pool([180, 90, 33], kv_heads=2, dim=dim)
    whole = torch.randn(180, heads, dim)
    scale = dim**-0.5
    expected = paged_attention(
        whole, pool.keys, pool.values, Layout.of([180], [180], pool.blocks[:1], BLOCK), scale, window=window
    )
    for start, end in ((0, 64), (64, 65), (65, 150), (150, 179), (179, 180)):
        others = torch.randn(6, heads, dim)
        layout = pool.layout([end - start, 5, 1], [end, 90, 33])
        got = paged_attention(
            torch.cat([whole[start:end], others]), pool.keys, pool.values, layout, scale, window=window
        )
        assert torch.equal(got[: end - start], expected[start:end])


def test_large_scores_neither_overflow_nor_turn_into_nan(isa: str) -> None:
    pool = Pool([70], kv_heads=1, dim=16)
    layout = pool.layout([70])
    q = 1e4 * torch.randn(70, 2, 16)
    got = paged_attention(q, pool.keys, pool.values, layout, 1.0)
    torch.testing.assert_close(got, twin(q, pool, layout, 1.0), rtol=1e-3, atol=1e-3)


def test_a_step_without_tokens_is_no_step(isa: str) -> None:
    pool = Pool([4], kv_heads=1, dim=16)
    layout = Layout.of([], [], [], BLOCK)
    assert paged_attention(torch.zeros(0, 2, 16), pool.keys, pool.values, layout, 1.0).shape == (0, 2, 16)


def test_other_dtypes_than_float32_take_the_reference() -> None:
    pool = Pool([30], kv_heads=2, dim=32)
    layout = pool.layout([30])
    q = torch.randn(30, 4, 32)
    got = paged_attention(q.bfloat16(), pool.keys.bfloat16(), pool.values.bfloat16(), layout, 0.2)
    torch.testing.assert_close(got.float(), twin(q, pool, layout, 0.2), rtol=3e-2, atol=3e-2)


def test_the_ops_are_registered_and_trace_without_data() -> None:
    pool = Pool([30], kv_heads=2, dim=32)
    pool.keys.nan_to_num_()
    pool.values.nan_to_num_()
    layout = pool.layout([30])
    meta = (layout.block_tables, layout.query_starts, layout.context_lengths)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.lorayard.paged_attention.default,
        (torch.randn(30, 4, 32), pool.keys, pool.values, *meta, 0.2, 0, 0.0),
        test_utils=checks,
    )
    rows = torch.randn(30, 2, 32)
    torch.library.opcheck(
        torch.ops.lorayard.store_kv.default, (rows, rows, pool.keys, pool.values, layout.slots), test_utils=checks
    )
