"""Knows how Transformers' attention layers reach the paged cache; never sequences or adapters.

Registered in Transformers' AttentionInterface, so a model's own code calls it instead of eager or SDPA attention; those
that don't ask it are led here by `direct`. Keys and values of the step's tokens are stored in the pool first;
then every token attends to its own sequence's blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from inference.kernels.attention import Layout, paged_attention, store_kv

NAME = "lorayard_paged"


class UnservedModel(Exception):
    """This model can't be served from paged blocks as Transformers computes it; the message says why."""


@dataclass(frozen=True)
class LayerShape:
    """Of one layer's cache: key-value heads, and the width of a key and of a value."""

    heads: int
    key: int
    value: int

    @property
    def numbers(self) -> int:
        """Per token."""
        return self.heads * (self.key + self.value)


class PagedCache:
    """All layers' keys and values. `layout` is the step's, set by the runner.

    Before `allocate` it only measures: a forward pass then shows which layers there are, and attends to nothing.
    """

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.layout: Layout | None = None
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @property
    def numbers_per_token(self) -> int:
        return sum(shape.numbers for shape in self.shapes.values())

    def allocate(self, blocks: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        """Room for `blocks` blocks of `size` tokens. A head's keys lie together, which decoding reads faster."""

        def zeros(heads: int, width: int) -> Tensor:
            return torch.zeros(blocks, heads, size, width, dtype=dtype, device=device).transpose(1, 2)

        for layer, shape in self.shapes.items():
            self._keys[layer] = zeros(shape.heads, shape.key)
            self._values[layer] = zeros(shape.heads, shape.value)

    def release(self) -> None:
        """Give the memory back; what was measured stays known."""
        self.layout = None
        self._keys.clear()
        self._values.clear()

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
    ) -> Tensor:
        """query [tokens, heads, dim], key and value [tokens, kv heads, dim], in the layout's order."""
        if not self._keys:
            return self._measure(layer, query, key, value)
        assert self.layout is not None, "the runner sets the layout before the model runs"
        keys, values = self._keys[layer], self._values[layer]
        store_kv(key, value, keys, values, self.layout.slots)
        return paged_attention(query, keys, values, self.layout, scale, window=window, softcap=softcap)

    def _measure(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer in self.shapes:
            raise UnservedModel(
                f"layer {layer} attends more than once in a pass, with other values under the same keys"
            )
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2])
        return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function: query [1, heads, tokens, dim]; returns [1, tokens, heads, dim]."""
    _refuse(extras)
    cache: PagedCache = module.lorayard_cache  # type: ignore[assignment]
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return cache.attend(layer, q, k, v, scale, sliding_window or 0, softcap or 0.0)[None], None


def attach(model: nn.Module, cache: PagedCache) -> None:
    """Have every attention layer of the model that Transformers has built attend in the cache."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = NAME
        if hasattr(module, "layer_idx") or hasattr(module, "layer_id"):
            module.lorayard_cache = cache  # type: ignore[assignment]


def _refuse(extras: Mapping[str, Any]) -> None:
    for name in ("s_aux", "position_bias", "head_mask"):
        if extras.get(name) is not None:
            raise UnservedModel(f"its attention uses {name}, which the paged attention does not compute")


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
