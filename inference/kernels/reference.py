"""The slow twins: what each kernel means, in plain torch, for any device and dtype. Know no pointers or threads."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[Tensor, Tensor, float]
"""A [rank, in], B [out, rank] and the scale of one adapter at one linear."""


def sgmm_(y: Tensor, x: Tensor, pairs: Sequence[Pair | None], segments: Iterable[tuple[int, int, int]]) -> None:
    """`y[s:e] += scale[g] * (x[s:e] @ A[g].T) @ B[g].T` for every segment (s, e, g) whose slot g holds a pair.

    Computed in the wider of x's and the pair's dtype, as PEFT does, and added in y's.
    """
    for start, end, slot in segments:
        pair = pairs[slot]
        if pair is None or start == end:
            continue
        a, b, scale = pair
        dtype = torch.promote_types(x.dtype, a.dtype)
        shrunk = scale * (x[start:end].to(dtype) @ a.to(dtype).T)
        y[start:end] += (shrunk @ b.to(dtype).T).to(y.dtype)


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    *,
    query_starts: Sequence[int],
    context_lengths: Sequence[int],
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Causal attention of each sequence's new tokens over its cached context; shapes as in `attention`."""
    out = q.new_empty((*q.shape[:2], value_cache.shape[3]))
    block_size, kv_heads = key_cache.shape[1], key_cache.shape[2]
    group = q.shape[1] // kv_heads
    for i, context in enumerate(context_lengths):
        start, end = query_starts[i], query_starts[i + 1]
        if start == end:
            continue
        blocks = block_tables[i, : -(-context // block_size)].to(key_cache.device, torch.int64)
        keys = key_cache[blocks].flatten(0, 1)[:context].repeat_interleave(group, dim=1)
        values = value_cache[blocks].flatten(0, 1)[:context].repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q[start:end], keys).float() * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        at = torch.arange(context - (end - start), context, device=q.device)[:, None]
        key = torch.arange(context, device=q.device)[None, :]
        hidden = key > at
        if window:
            hidden |= key <= at - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        out[start:end] = torch.einsum("hqk,khd->qhd", weights.to(values.dtype), values)
    return out


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Write token t's key and value at position `slots[t]` of the pool, in tokens over all blocks; -1: nowhere."""
    block_size = key_cache.shape[1]
    at = slots.to(key_cache.device)
    kept = at >= 0
    key, value, at = key[kept], value[kept], at[kept]
    block, offset = at // block_size, at % block_size
    key_cache[block, offset] = key.to(key_cache.dtype)
    value_cache[block, offset] = value.to(value_cache.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """`x / sqrt(mean(x**2) + eps) * (weight + offset)` over the last dimension."""
    numbers = _wide(x)
    scale = torch.rsqrt(numbers.square().mean(-1, keepdim=True) + eps)
    return (numbers * scale * (_wide(weight) + offset)).to(x.dtype)


def gated_(gate: Tensor, up: Tensor, act: str) -> Tensor:
    """`act(gate) * up`, for `silu` and `gelu_tanh`."""
    numbers = _wide(gate)
    done = functional.silu(numbers) if act == "silu" else functional.gelu(numbers, approximate="tanh")
    return gate.copy_(done * up)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [tokens, heads, dim] by cos and sin [tokens, turned]; what is over `turned` stays."""
    turned = x[..., : cos.shape[-1]]
    numbers = _wide(turned)
    low, high = numbers.chunk(2, dim=-1)
    turned.copy_(numbers * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None])
    return x


def _wide(x: Tensor) -> Tensor:
    """Narrow dtypes in float32: what is computed of them is rounded once."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
