"""Knows how PEFT names an adapter's tensors and lays them over a base model's linears; never their values.

The tensors in the file lead: each must belong to a linear of the base that the config targets, and each linear that the
config targets must have its two. PEFT would skip what doesn't match and serve the rest; here that is a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from adapters.base import BaseSpec
from adapters.errors import Finding, Rejected
from adapters.files import CONFIG, WEIGHTS
from adapters.header import Header, Tensor
from adapters.limits import DEFAULT, Limits
from adapters.matching import Placement, placements
from adapters.pattern import PatternError, TooCostly
from adapters.peft_config import PeftConfig, embedding_finding, read_config

__all__ = ["LoraPair", "PeftConfig", "pairs", "read_config"]

_TENSOR: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_FOREIGN: Final[Mapping[str, tuple[str, str]]] = {
    "lora_magnitude_vector": (
        "unsupported-dora",
        "it belongs to DoRA, which isn't served yet; train the adapter as plain LoRA",
    ),
    "lora_embedding_": (
        "unsupported-embedding",
        "it adapts an embedding, which isn't served yet; train the layers' linears only",
    ),
    "lora_B.bias": (
        "unsupported-lora-bias",
        "it is a bias, which isn't served yet; train the adapter with lora_bias=false",
    ),
    "base_layer.": ("unsupported-base-weights", "it is a base model's weight; save with save_embedding_layers=False"),
    "modules_to_save": ("unsupported-modules-to-save", "it is a retrained module; train without modules_to_save"),
    "lora_velora_embed": (
        "unsupported-velora",
        "it belongs to VeLoRA, which isn't served yet; train the adapter as plain LoRA",
    ),
    "lora_diag": ("unsupported-kasa", "it belongs to KaSA, which isn't served yet; train the adapter as plain LoRA"),
    "_orig_mod.": ("unknown-tensor", "it was saved from a compiled model; save the uncompiled one"),
}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """`module(x) + scale * (x @ A.T) @ B.T`, A = tensor `a` of shape [rank, inputs], B = tensor `b` of [outputs, rank].

    `module` is the path in the base's named_modules(); `a` and `b` are names in the safetensors file.
    """

    module: str
    rank: int
    scale: float
    a: str
    b: str
    inputs: int
    outputs: int


@dataclass
class _Found:
    """The tensors that a file has for one module."""

    a: Tensor | None = None
    b: Tensor | None = None


def pairs(config: PeftConfig, header: Header, base: BaseSpec, limits: Limits = DEFAULT) -> tuple[LoraPair, ...]:
    """The adapter as pairs over `base`, in the order of the base's linears. Raises Rejected with every finding."""
    try:
        placed = placements(config, base, limits)
    except PatternError as error:
        rule = "pattern-too-costly" if isinstance(error, TooCostly) else "pattern"
        message = f"A module pattern in {CONFIG} isn't taken: {error}; use plain module names."
        raise Rejected.because(rule, message) from error
    findings: list[Finding] = []
    modules = _by_module(header, findings)
    findings += _unmatched(modules, placed, base, config)
    findings += _misfits(modules, placed, base)
    if findings:
        raise Rejected(findings)
    return tuple(_pair(name, modules[name], placed[name], base) for name in base.linears if name in placed)


def _by_module(header: Header, findings: list[Finding]) -> dict[str, _Found]:
    modules: dict[str, _Found] = {}
    for name, tensor in header.tensors.items():
        if matched := _TENSOR.fullmatch(name):
            found = modules.setdefault(matched["module"], _Found())
            setattr(found, matched["side"].lower(), tensor)
        else:
            findings.append(_foreign(name))
    return modules


def _foreign(name: str) -> Finding:
    for part, (rule, why) in _FOREIGN.items():
        if part in name:
            return Finding(rule, f"Tensor {name} can't be served: {why}.", name)
    message = f"Tensor {name} isn't one that PEFT writes for LoRA on linears; save the adapter with save_pretrained."
    return Finding("unknown-tensor", message, name, "base_model.model.<module>.lora_A.weight or .lora_B.weight", name)


def _unmatched(
    modules: Mapping[str, _Found], placed: Mapping[str, Placement], base: BaseSpec, config: PeftConfig
) -> Iterator[Finding]:
    """Modules that only the file, only the base or only the config knows."""
    if modules and not modules.keys() & base.linears.keys():
        trained_on = f" (its config names {config.base_model})" if config.base_model else ""
        message = f"None of the adapter's modules is in this base model; upload it for its own{trained_on}."
        yield Finding("wrong-base-model", message, "", base.architecture, config.base_model)
    if not modules and not placed:
        yield Finding("no-modules", f"Nothing in {WEIGHTS} matches target_modules; check which modules were trained.")
    unserved = [name for name in placed if name == base.head or name not in base.linears]
    yield from map(embedding_finding, unserved)
    for name in modules:
        if name in unserved:
            continue
        if name not in base.linears:
            message = f"The base model has no linear {name}; upload the adapter for the base model it was trained on."
            yield Finding("unmatched-module", message, name, f"a linear of {base.architecture}", name)
        elif name not in placed:
            message = f"{WEIGHTS} changes {name}, but {CONFIG} doesn't target it; upload the two files of one adapter."
            yield Finding("untargeted-module", message, name, "a target of the config", name)


def _misfits(modules: Mapping[str, _Found], placed: Mapping[str, Placement], base: BaseSpec) -> Iterator[Finding]:
    """Targeted linears whose tensors are missing or of another shape."""
    for name, placement in placed.items():
        if name not in base.linears or name == base.head:
            continue
        outputs, inputs = base.linears[name]
        found = modules.get(name, _Found())
        yield from _misfit(name, "A", found.a, (placement.rank, inputs), rank_at=0)
        yield from _misfit(name, "B", found.b, (outputs, placement.rank), rank_at=1)


def _misfit(name: str, side: str, tensor: Tensor | None, shape: tuple[int, int], rank_at: int) -> Iterator[Finding]:
    expected = str(list(shape))
    if tensor is None:
        missing = f"base_model.model.{name}.lora_{side}.weight"
        message = f"{CONFIG} targets {name}, but {WEIGHTS} lacks its lora_{side}; save the whole adapter and upload it."
        yield Finding("missing-tensor", message, missing, expected, "nothing")
    elif len(tensor.shape) != 2:
        message = f"Tensor {tensor.name} must have two dimensions; gather sharded weights before saving."
        yield Finding("shape", message, tensor.name, expected, str(list(tensor.shape)))
    elif tensor.shape[1 - rank_at] != shape[1 - rank_at]:
        message = (
            f"Tensor {tensor.name} doesn't fit the base model's {name}; upload it for the model it was trained on."
        )
        yield Finding("wrong-base-model", message, tensor.name, expected, str(list(tensor.shape)))
    elif tensor.shape[rank_at] != shape[rank_at]:
        message = f"Tensor {tensor.name} has another rank than {CONFIG} says; upload the two files of one adapter."
        yield Finding("rank-mismatch", message, tensor.name, expected, str(list(tensor.shape)))


def _pair(name: str, found: _Found, placement: Placement, base: BaseSpec) -> LoraPair:
    assert found.a is not None, name
    assert found.b is not None, name
    outputs, inputs = base.linears[name]
    return LoraPair(name, placement.rank, placement.scale, found.a.name, found.b.name, inputs, outputs)
