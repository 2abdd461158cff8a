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
WEIGHT, BIAS = "weight", "bias"
WRAPPED = "base_layer."

PARTS: Final[Mapping[str, str]] = {
    A: "LoRA on a linear",
    B: "LoRA on a linear",
    EMBEDDING_A: "LoRA on an embedding",
    EMBEDDING_B: "LoRA on an embedding",
    LORA_BIAS: "LoRA's bias (lora_bias)",
    MAGNITUDE: "DoRA (use_dora)",
    WEIGHT: "a retrained module (modules_to_save)",
    BIAS: "a retrained bias (bias, modules_to_save)",
}

_PREFIX: Final = "base_model.model."
_TENSOR: Final = re.compile(
    rf"{re.escape(_PREFIX)}(?P<module>.+?)\."
    r"(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector|(base_layer\.)?(weight|bias))"
)
_FOREIGN: Final[Mapping[str, tuple[str, str]]] = {
    "trainable_tokens_": (
        "unsupported-trainable-tokens",
        "it holds single tokens' embeddings, which aren't served; train the whole embedding with modules_to_save",
    ),
    ".experts.": (
        "unsupported-experts",
        "it is of experts that were retrained as a whole, which isn't served; train them with LoRA",
    ),
    "modules_to_save.": ("unknown-tensor", "its name is of a model in training; save the adapter with save_pretrained"),
    "lora_velora_embed": (
        "unsupported-velora",
        "it belongs to VeLoRA, which isn't served; train the adapter as plain LoRA",
    ),
    "lora_diag": ("unsupported-kasa", "it belongs to KaSA, which isn't served; train the adapter as plain LoRA"),
    "_orig_mod.": ("unknown-tensor", "it was saved from a compiled model; save the uncompiled one"),
}


class Key(NamedTuple):
    """What a tensor is: `part` of `module`, whose path is as in the base's named_modules()."""

    module: str
    part: str


def parse(name: str) -> Key | None:
    """None for a name that PEFT doesn't give."""
    matched = _TENSOR.fullmatch(name)
    if matched is None or "\n" in name:
        return None
    return Key(matched["module"], matched["part"])


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
