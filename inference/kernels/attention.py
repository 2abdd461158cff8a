"""out[t, h] = softmax(scale * q[t, h] · K) V over the keys 0..position(t) of t's own sequence, read in place.

Paged attention for a flat batch that mixes prefill chunks and decodes. Knows blocks and rows; never sequences'
owners, prefixes or models.

    q                       [tokens, heads, dim], every sequence's new tokens, one after the other; any strides but
                            a unit one along dim, so transformers' transposed views go in as they are
    key_cache, value_cache  [blocks, block_size, kv_heads, dim], one layer's, of the same strides, a unit one along
                            dim; heads % kv_heads == 0 (GQA). Read fastest when a block's tokens of one head lie
                            together: [blocks, kv_heads, block_size, dim] in memory, `.transpose(1, 2)` of it here
    layout                  `Layout`: where each sequence's rows and blocks are; built once per step, for all layers

    layout = Layout.of(query_lengths=[1, 64], context_lengths=[33, 64], block_tables=[[4, 0, 7], [1, 2, 3, 5]],
                       block_size=16)
    store_kv(key, value, key_cache, value_cache, layout.slots)             # the new tokens' keys first
    out = paged_attention(q, key_cache, value_cache, layout, scale, window=0, softcap=0.0)

Context lengths count the new tokens. `window` is how many keys a token sees, itself included (0: all). A row's result
does not depend on what else is in the batch, nor, on a CPU, on how its prompt was cut into chunks, bit by bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference.kernels import reference
from inference.kernels.gpu.layout import Placed
from inference.kernels.library import CAttention, library, ops


@dataclass(frozen=True)
class Layout:
    """Rows and blocks of a step's sequences, on the host, or all of it on the device where `placed` holds it.

    block_tables     int32 [sequences, most blocks], padded with zeros that are never read
    query_starts     int32 [sequences + 1], first row of each sequence
    context_lengths  int32 [sequences], cached tokens plus the new ones
    slots            int64 [tokens], where in the pool each new token goes: block * block_size + offset; -1: nowhere
    placed           what the other tensors are views of, on a device
    """

    block_tables: Tensor
    query_starts: Tensor
    context_lengths: Tensor
    slots: Tensor
    placed: Placed | None = None

    @classmethod
    def of(
        cls,
        query_lengths: Sequence[int],
        context_lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> "Layout":
        """Sequence k has `query_lengths[k]` new tokens, the last of `context_lengths[k]` in `block_tables[k]`."""
        tables = np.zeros((len(block_tables), max(map(len, block_tables), default=0)), np.int32)
        slots: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = [np.zeros(0, np.int64)]
        for row, blocks, new, context in zip(tables, block_tables, query_lengths, context_lengths, strict=True):
            assert 0 <= new <= context <= len(blocks) * block_size, "a sequence's blocks hold its context"
            row[: len(blocks)] = blocks
            at = np.arange(context - new, context)
            slots.append(row[at // block_size].astype(np.int64) * block_size + at % block_size)
        starts = np.zeros(len(block_tables) + 1, np.int32)
        np.cumsum(query_lengths, out=starts[1:])
        layout = cls(
            block_tables=torch.from_numpy(tables),
            query_starts=torch.from_numpy(starts),
            context_lengths=torch.tensor(context_lengths, dtype=torch.int32),
            slots=torch.from_numpy(np.concatenate(slots)),
        )
        return layout if torch.device(device).type == "cpu" else layout.on(Placed.of(layout, device))

    def on(self, placed: Placed) -> "Layout":
        """As `placed` holds it, padding included: rows of slot -1, sequences without new tokens."""
        return Layout(placed.tables, placed.starts, placed.contexts, placed.slots, placed)


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    layout: Layout,
    scale: float,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Attend; returns [tokens, heads, value dim], contiguous. The new tokens' keys and values must be stored before."""
    if q.is_cuda and layout.placed is not None and q.dtype is key_cache.dtype is value_cache.dtype:
        from inference.kernels.gpu import attention as gpu  # the CPU never pays for triton

        return gpu.paged_attention(q, key_cache, value_cache, layout.placed, scale, window=window, softcap=softcap)
    return _attend(
        q,
        key_cache,
        value_cache,
        layout.block_tables,
        layout.query_starts,
        layout.context_lengths,
        scale,
        window,
        softcap,
    )


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Copy key and value [tokens, kv_heads, dim], of any token and head stride, to `Layout.slots` of the caches."""
    if key.is_cuda:
        from inference.kernels.gpu import attention as gpu  # the CPU never pays for triton

        return gpu.store_kv(key, value, key_cache, value_cache, slots)
    native = library()
    if native is None or not _served(key, value, key_cache, value_cache):
        return reference.store_kv(key, value, key_cache, value_cache, slots)
    tokens = key.shape[0]
    assert slots.shape == (tokens,)
    for rows, cache in ((key, key_cache), (value, value_cache)):
        assert rows.shape == (tokens, *cache.shape[2:])
        native.store(
            *(rows.data_ptr(), rows.stride(0), rows.stride(1)),
            *(cache.data_ptr(), *cache.stride()[:3]),
            *(slots.data_ptr(), *rows.shape, cache.shape[1]),
        )
    return None


def _attend(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    native = library()
    strides = key_cache.stride()
    alike = key_cache.shape == value_cache.shape and strides == value_cache.stride()
    if native is None or not alike or not _served(q, key_cache, value_cache):
        return reference.paged_attention(
            q,
            key_cache,
            value_cache,
            block_tables,
            query_starts=query_starts.tolist(),
            context_lengths=context_lengths.tolist(),
            scale=scale,
            window=window,
            softcap=softcap,
        )
    tokens, heads, dim = q.shape
    _, block_size, kv_heads, _ = key_cache.shape
    assert heads % kv_heads == 0
    assert key_cache.shape[3] == dim
    assert block_tables.is_contiguous()
    out = torch.empty((tokens, heads, dim))
    native.attend(
        CAttention(
            *(out.data_ptr(), q.data_ptr(), q.stride(0), q.stride(1)),
            *(key_cache.data_ptr(), value_cache.data_ptr(), *strides[:3]),
            *(block_tables.data_ptr(), block_tables.shape[1], query_starts.data_ptr(), context_lengths.data_ptr()),
            *(context_lengths.shape[0], heads, kv_heads, dim, block_size),
            *(scale, window, softcap),
        )
    )
    return out


def _served(*tensors: Tensor) -> bool:
    return all(tensor.is_cpu and tensor.dtype is torch.float32 and tensor.stride(-1) == 1 for tensor in tensors)


def _trace_attend(q: Tensor, _: Tensor, value_cache: Tensor, *rest: object) -> Tensor:
    return q.new_empty((*q.shape[:2], value_cache.shape[3]))


def _trace_store(*_: object) -> None:
    """Shapes only: the op returns nothing."""


# For graphs and traces; the engine calls the functions above, which saves the dispatcher's time (see `sgmm`).
ops.define(
    "paged_attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor query_starts, "
    "Tensor context_lengths, float scale, int window, float softcap) -> Tensor"
)
ops.impl("paged_attention", _attend, "CompositeExplicitAutograd")
ops.impl("paged_attention", _trace_attend, "Meta")
ops.define("store_kv(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slots) -> ()")
ops.impl("store_kv", store_kv, "CompositeExplicitAutograd")
ops.impl("store_kv", _trace_store, "Meta")
