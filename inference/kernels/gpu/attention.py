"""Launches paged attention and the store on a GPU. Knows shapes and strides; never what a program does with them.

Attention is torch's own varlen kernel where that reads this cache (`_flash`), else Triton's `attend`: prefill chunks
and decodes in one launch, its grid set by the layout's room. A decode is one program per sequence and key head, however
long its context: long contexts in small batches leave a GPU idle until their keys are split over programs too.

The Triton kernels' numerics are tested under its interpreter and they compile for sm_80 and sm_90. Neither they nor the
way through torch's kernel have run on hardware.
"""

import torch
import triton
from torch import Tensor
from torch.nn import attention as torch_attention
from torch.nn.attention import varlen

from inference.kernels.gpu import attention_kernels as kernels
from inference.kernels.gpu.layout import Placed
from inference.kernels.gpu.sgmm import native, precision

ROWS = 64
"""Tokens times heads of one program, at most; 16 at least, which a tensor core takes."""


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    placed: Placed,
    scale: float,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """As `attention.paged_attention`; q and both caches of one dtype."""
    if not softcap and _flash_reads(q, key_cache, value_cache):
        return _flash(q, key_cache, value_cache, placed, scale, window)
    return attend(q, key_cache, value_cache, placed, scale, window=window, softcap=softcap)


def attend(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    placed: Placed,
    scale: float,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """The Triton kernel."""
    tokens, heads, dim = q.shape
    _, block_size, kv_heads, value_dim = value_cache.shape
    group = heads // kv_heads
    assert heads % kv_heads == 0
    assert key_cache.shape == (value_cache.shape[0], block_size, kv_heads, dim)
    assert q.dtype is key_cache.dtype is value_cache.dtype
    assert q.stride(2) == key_cache.stride(3) == value_cache.stride(3) == 1
    assert placed.slots.shape == (tokens,)
    out = q.new_empty((tokens, heads, value_dim))
    sharing = _heads(group, placed.tile)
    width = max(triton.next_power_of_2(dim), 16)
    kernels.attend[(placed.count, kv_heads * triton.cdiv(group, sharing))](
        *(out, q, *q.stride()[:2]),
        *(key_cache, *key_cache.stride()[:3]),
        *(value_cache, *value_cache.stride()[:3]),
        *(placed.tables, placed.width, placed.starts, placed.contexts, placed.tiles),
        *(heads, group, dim, value_dim, scale, window, softcap),
        BLOCK=block_size,
        T=placed.tile,
        H=sharing,
        N=64 if width * q.element_size() <= 256 else 32,
        D=width,
        V=max(triton.next_power_of_2(value_dim), 16),
        WINDOWED=window > 0,
        CAPPED=softcap > 0,
        PRECISION=precision(q.dtype),
        NATIVE=native(q.dtype),
    )
    return out


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """As `attention.store_kv`; slot -1: the token is padding, nothing is written."""
    for rows, cached in ((key, key_cache), (value, value_cache)):
        tokens, heads, dim = rows.shape
        assert rows.shape == (slots.shape[0], *cached.shape[2:])
        assert rows.stride(2) == cached.stride(3) == 1
        width = triton.next_power_of_2(dim)
        together = min(triton.next_power_of_2(heads), max(1, 2048 // width))
        kernels.store[(tokens, triton.cdiv(heads, together))](
            *(rows, *rows.stride()[:2], cached, *cached.stride()[:3], slots, heads, dim),
            BLOCK=cached.shape[1],
            H=together,
            D=width,
        )


def _heads(group: int, tile: int) -> int:
    """How many heads that share a key head one program takes."""
    return max(16 // tile, min(int(triton.next_power_of_2(group)), ROWS // tile))


def _flash_reads(q: Tensor, key_cache: Tensor, value_cache: Tensor) -> bool:
    """Whether torch reads these in place: with FlashAttention 3, once the operator has installed and activated it.

    torch 2.13 hands its own FlashAttention 2 no block table, and to the fourth only on other GPUs than Hopper's.
    """
    chosen = getattr(torch_attention, "current_flash_attention_impl", None)  # not in every torch from 2.11 on
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.dtype is key_cache.dtype is value_cache.dtype
        and key_cache.shape == value_cache.shape
        and q.shape[2] % 8 == 0
        and q.shape[2] <= 256
        and chosen is not None
        and chosen() == "FA3"
    )


def _flash(q: Tensor, key_cache: Tensor, value_cache: Tensor, placed: Placed, scale: float, window: int) -> Tensor:
    """torch.nn.attention.varlen with a block table; never run on hardware here.

    One split of the keys, as torch documents it for results that do not depend on the batch.
    """
    out = varlen.varlen_attn(
        q,
        key_cache,
        value_cache,
        placed.starts,
        None,  # FlashAttention 3 refuses starts of keys beside a block table
        placed.query,
        placed.context,
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=q.shape[1] != key_cache.shape[2],
        seqused_k=placed.contexts,
        block_table=placed.tables,
        num_splits=1,
    )
    assert isinstance(out, Tensor)
    return out
