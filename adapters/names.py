"""Knows how PEFT names the tensors of a LoRA adapter's file; never which of them an adapter should have.

`base_model.model.<module>.<part>`, where the part is one of PARTS. Whole parameters of a module that LoRA wraps are
found below `base_layer`, of others below the module itself: both are the parts WEIGHT and BIAS here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from adapters.errors import Finding

A, B = "lora_A.weight", "lora_B.weight"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
LORA_BIAS = "lora_B.bias"
MAGNITUDE = "lora_magnitude_vector"
ROWS = "token_adapter.trainable_tokens_delta"
WEIGHT, BIAS = "weight", "bias"
WRAPPED = "base_layer."
TOKENS = "token_adapter.base_layer."
RETRAINED, ORIGINAL = "modules_to_save.", "original_module."
"""What PEFT writes besides of a retrained embedding, if the vocabulary was resized: the same again, which it doesn't
read, and what the base had, which it loads into the base."""

PARTS: Final[Mapping[str, str]] = {
    A: "LoRA on a linear",
    B: "LoRA on a linear",
    EMBEDDING_A: "LoRA on an embedding",
    EMBEDDING_B: "LoRA on an embedding",
    LORA_BIAS: "LoRA's bias (lora_bias)",
    MAGNITUDE: "DoRA (use_dora)",
    ROWS: "single tokens (trainable_token_indices)",
    WEIGHT: "a retrained module (modules_to_save)",
    BIAS: "a retrained bias (bias, modules_to_save)",
}

_PREFIX: Final = "base_model.model."
_TENSOR: Final = re.compile(
    rf"{re.escape(_PREFIX)}(?P<module>.+?)\."
    r"(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector"
    r"|token_adapter\.trainable_tokens_delta"
    r"|((token_adapter\.)?base_layer\.|modules_to_save\.|original_module\.)?(weight|bias))"
)
_WRAPPERS: Final = ("_orig_mod.", "_fsdp_wrapped_module.")
CAUSES: Final = frozenset({"compiled-names", "sharded-names", "mlx-format"})
"""Rules of names that say by themselves why nothing in the file is where it should be."""
_PAIR: Final = frozenset({A, B, EMBEDDING_A, EMBEDDING_B, LORA_BIAS, MAGNITUDE})
_RENAME: Final = "PEFT would leave it out without a word: rename it as docs/adapters.md says under Wrapped models"
_FOREIGN: Final[Mapping[str, tuple[str, str]]] = {
    "_orig_mod.": ("compiled-names", f"it was saved from a model that torch.compile had wrapped; {_RENAME}"),
    "_fsdp_wrapped_module.": ("sharded-names", f"it was saved from a model that FSDP had wrapped; {_RENAME}"),
    ".default.": ("unknown-tensor", "its name is of a model in training; save the adapter with save_pretrained"),
    ".experts.": (
        "unsupported-experts",
        "it is of experts that were retrained as a whole, which isn't served; train them with LoRA",
    ),
    "modules_to_save.": (
        "unknown-tensor",
        "its module isn't named in modules_to_save; upload the adapter's own config",
    ),
    "original_module.": (
        "unknown-tensor",
        "its module isn't named in modules_to_save; upload the adapter's own config",
    ),
    "lora_velora_embed": (
        "unsupported-velora",
        "it belongs to VeLoRA, which isn't served; train the adapter as plain LoRA",
    ),
    "lora_diag": ("unsupported-kasa", "it belongs to KaSA, which isn't served; train the adapter as plain LoRA"),
    ".lora_a": ("mlx-format", "it is of MLX's format; convert it as docs/adapters.md says under MLX"),
    ".lora_b": ("mlx-format", "it is of MLX's format; convert it as docs/adapters.md says under MLX"),
}


class Key(NamedTuple):
    """What a tensor is: `part` of `module`, whose path is as in the base's named_modules()."""

    module: str
    part: str


def parse(name: str) -> Key | None:
    """None for a name that PEFT doesn't give."""
    matched = _TENSOR.fullmatch(name)
    if matched is None or "\n" in name or any(wrapper in name for wrapper in _WRAPPERS):
        return None
    return Key(matched["module"], matched["part"])


def is_pair(key: Key) -> bool:
    """Whether a tensor is of a LoRA pair."""
    return key.part in _PAIR


def parameter(key: Key) -> str:
    """The base's parameter that a tensor is loaded in place of; "" for any other."""
    own = key.part.removeprefix(WRAPPED).removeprefix(TOKENS)
    return f"{key.module}.{own}" if own in (WEIGHT, BIAS) else ""


def written(key: Key) -> str:
    """The name that PEFT gives; the inverse of `parse`."""
    return f"{_PREFIX}{key.module}.{key.part}"


def foreign(name: str) -> Finding:
    """Why a tensor that nothing asks for can't be served."""
    for mark, (rule, why) in _FOREIGN.items():
        if mark in name:
            return Finding.about(name, rule, f"the tensor can't be served: {why}.")
    what = "the tensor isn't one that PEFT writes for LoRA; save the adapter with save_pretrained."
    return Finding.about(name, "unknown-tensor", what, "base_model.model.<module>.lora_A.weight and the like")
