"""Knows what of a mixture of experts an adapter must fit: the experts' matrices, their routers, and what older versions
of Transformers called both; never adapters or weights.

Transformers 5 keeps one matrix of all of a layer's experts in one parameter, [experts, outputs, inputs]. Its own rules
for older checkpoints (conversion_mapping.py) say which linears that was before, one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

_NAMES: Final = {"gate_up_proj", "down_proj"}
_CONVERTED: Final = ("mixtral", "qwen2_moe")
"""The kinds of mixtures whose configs PEFT converts (utils/transformers_weight_conversion.py)."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A parameter of [experts, outputs, inputs]: one matrix of each of a mixture's experts. Of them, `active` compute
    each token. `parts`: the linears of one expert that older versions of Transformers kept there, one below the other.
    """

    experts: int
    outputs: int
    inputs: int
    active: int
    parts: tuple[str, ...] = ()


def experts(model: Any) -> dict[str, Experts]:
    """Return the experts that LoRA can be served on, by their fused parameter, in the order of the model's modules."""
    active = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    parts = _parts(_rules(model)) if any(True for _ in _modules(model)) else {}
    return {
        f"{name}.{own}": _experts(parameter, active, parts.get(own, ()))
        for name, module in _modules(model)
        for own, parameter in module.named_parameters(recurse=False)
    }


def _experts(parameter: Any, active: int | None, parts: tuple[str, ...]) -> Experts:
    experts, outputs, inputs = parameter.shape
    return Experts(experts, outputs, inputs, min(active or experts, experts), parts)


def routers(model: Any) -> dict[str, tuple[int, int]]:
    """Return the shape of each router's weight by module, of those routers that are no torch.nn.Linear.

    What a router gives for a token depends on that token alone.
    """
    from torch import nn

    found = {}
    for name, module in _modules(model):
        block, _, _ = name.rpartition(".")
        for own, child in model.get_submodule(block).named_children():
            shape = tuple(getattr(getattr(child, "weight", None), "shape", ()))
            if len(shape) == 2 and shape[0] == module.num_experts and not isinstance(child, nn.Linear):
                found[f"{block}.{own}"] = shape
    return found


def fused(model: Any) -> dict[str, str]:
    """What PEFT takes target modules of separate experts for: the end of their names to that of a parameter.

    PEFT's own list, which leaves out the models after which it calls their kind: those it does not convert, Mixtral's
    excepted.
    """
    from transformers import conversion_mapping

    known: Any = conversion_mapping
    kind = getattr(model.config, "model_type", None)
    pattern = "mixtral" if kind == "mixtral" else known._MODEL_TO_CONVERSION_PATTERN.get(kind)
    if pattern not in _CONVERTED:
        return {}
    parts = _parts(known.get_checkpoint_conversion_mapping(pattern))
    return {"gate": "gate.weight"} | {part: own for own, names in parts.items() for part in names}


def _modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Those that say how they compute (`use_experts_implementation`), and do so in the plain way: gate and up joined
    in one parameter, no biases, no norm of their own."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False)) if hasattr(module, "is_transposed") else {}
        stacked = own.keys() == _NAMES and all(parameter.dim() == 3 for parameter in own.values())
        if stacked and module.has_gate and not (module.has_bias or module.is_transposed or module.has_post_expert_norm):
            yield name, module


def _rules(model: Any) -> Any:
    from transformers.conversion_mapping import get_model_conversion_mapping

    return get_model_conversion_mapping(model)


def _parts(rules: Any) -> dict[str, tuple[str, ...]]:
    """By the name of the experts' parameter, the linears that a rule makes it of: `….experts.*.<part>.weight`."""
    from transformers.core_model_loading import WeightConverter

    found = {}
    for rule in rules or ():
        if isinstance(rule, WeightConverter) and ".experts." in rule.target_patterns[0]:
            sources = [source.split(".") for source in rule.source_patterns]
            if all(source[-3:-2] == ["*"] and source[-1] == "weight" for source in sources):
                own = rule.target_patterns[0].rpartition(".")[2]
                found[own] = tuple(source[-2] for source in sources)
    return found
