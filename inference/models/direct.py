"""Knows the attention layers of Transformers that don't ask its AttentionInterface; never sequences or adapters.

Of such a layer the part that attends is another: it hands its queries, keys and values to the paged cache. Everything
else of the layer stays the library's, its parameters and linears too.
"""

from typing import Any

from torch import Tensor, nn

from inference.models.attention import UnservedModel


class Heads:
    """A layer whose `_attn` takes queries, keys and values [1, heads, tokens, dim] and returns the same shape."""

    def _attn(self: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None = None) -> tuple[Tensor, None]:
        q, k, v = (states[0].transpose(0, 1) for states in (query.to(value.dtype), key.to(value.dtype), value))
        layer = self.layer_idx if hasattr(self, "layer_idx") else self.layer_id
        out = self.lorayard_cache.attend(layer, q, k, v, self._scale(), self._window(), 0.0)
        return out.transpose(0, 1)[None], None

    def _scale(self: Any) -> float:
        return 1.0 / float(self.scale_attn)

    def _window(self) -> int:
        return 0


class UnscaledHeads(Heads):
    """GPT-Neo's: scores are not scaled, and `local` layers see a window."""

    def _scale(self) -> float:
        return 1.0

    def _window(self: Any) -> int:
        return int(self.config.window_size) if self.attention_type == "local" else 0


class FalconHeads:
    """Falcon's, with rotary positions. It repeats key-value heads for their query heads; one of each is kept."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        alibi: Tensor | None,
        attention_mask: None,
        *_: object,
        position_embeddings: tuple[Tensor, Tensor],
        **__: object,
    ) -> tuple[Tensor, None]:
        from transformers.models.falcon import modeling_falcon as falcon

        if alibi is not None:
            raise UnservedModel(
                "its attention adds position biases (ALiBi), which the paged attention does not compute"
            )
        query, key, value = self._split_heads(self.query_key_value(hidden_states))
        repeated = self.num_heads // self.num_kv_heads if self.new_decoder_architecture else 1
        rotate: Any = falcon.apply_rotary_pos_emb
        query, key = rotate(query, key[:, :, ::repeated], *position_embeddings, unsqueeze_dim=2)
        value = value[0, :, ::repeated]
        scale = self.head_dim**-0.5
        out = self.lorayard_cache.attend(self.layer_idx, query[0], key[0], value, scale, 0, 0.0)
        return self.dense(out.reshape(1, -1, self.num_heads * self.head_dim)), None


def lead(model: nn.Module) -> None:
    """Have these layers of the model attend in the cache that they were given."""
    for module in model.modules():
        if (part := PARTS.get(type(module).__name__)) is not None:
            module.__class__ = type(f"Paged{type(module).__name__}", (part, type(module)), {})


PARTS: dict[str, type] = {
    "GPTJAttention": Heads,
    "CodeGenAttention": Heads,
    "GPTNeoSelfAttention": UnscaledHeads,
    "FalconAttention": FalconHeads,
}
"""By the layer's class: what takes the place of the part that attends."""
