"""Knows how several adapters of one base become one adapter's files; never versions, tenants or the pairs' arithmetic.

Modules are read, combined and written one after the other, in the base's order. The result is plain LoRA whose scale
is 1 everywhere: its config names exactly the modules that any of the adapters changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.base import BaseSpec
from adapters.errors import Unmergeable
from adapters.files import CONFIG, WEIGHTS
from adapters.limits import DEFAULT, Limits
from adapters.matching import placements
from adapters.merge.arithmetic import SAME_RANK, SPARSE, Recipe, Weighted, combine
from adapters.merge.changes import Changes
from adapters.merge.checkpoint import FLOATS, read_checkpoint
from adapters.merge.writing import Entry, Progress, appearing, floats, silent, sweep_parts, write_safetensors
from adapters.names import EMBEDDING_A, EMBEDDING_B, A, B, Key, written
from adapters.peft import LoraPair
from adapters.peft_config import PeftConfig, read_config

if TYPE_CHECKING:
    from torch import Generator, Tensor

METADATA: Final = "lorayard.merge"


@dataclass(frozen=True, eq=False)
class Part:
    """One adapter of a combination. `name`: what a refusal calls it."""

    name: str
    weight: float
    config: PeftConfig
    changes: Changes

    @property
    def rank(self) -> int:
        """The largest that the config names."""
        return max(self.config.rank, *self.config.rank_pattern.values(), 1)

    @property
    def pairs(self) -> Mapping[str, LoraPair]:
        return {pair.module: pair for pair in (*self.changes.layout.linears, *self.changes.layout.embeddings)}


def open_part(name: str, weight: float, folder: Path, base: BaseSpec, source: str) -> Part:
    """The adapter in `folder`, of the base at `source`. Raises Rejected for one that doesn't fit, Unmergeable for one
    that can't be combined with any."""
    part = Part(name, weight, read_config(folder / CONFIG), Changes(folder, base))
    _refuse(part, source)
    return part


def merge_adapters(
    parts: Sequence[Part],
    recipe: Recipe,
    base: BaseSpec,
    into: Path,
    *,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    limits: Limits = DEFAULT,
) -> None:
    """Write the combination's two files into the folder `into`; equal inputs give equal files.

    `provenance` goes into the weights' metadata. Raises Unmergeable for what can't be combined.
    """
    import torch

    ranks = _ranks(parts, recipe, base, limits)
    into.mkdir(parents=True, exist_ok=True)
    sweep_parts(into)
    random = torch.Generator().manual_seed(seed)
    entries = [entry for module, rank in ranks.items() for entry in _entries(parts, module, rank, recipe, base, random)]
    metadata = {"format": "pt", METADATA: json.dumps(provenance or {}, sort_keys=True)}
    write_safetensors(into / WEIGHTS, entries, metadata, progress)
    with appearing(into / CONFIG) as target:
        target.write(json.dumps(_config(parts, ranks, base), indent=2, sort_keys=True).encode())


def _refuse(part: Part, source: str) -> None:
    """What PEFT's add_weighted_adapter drops or gets wrong without a word."""
    for rule, found, what in (
        ("combines-dora", part.config.dora, "was trained with DoRA, whose magnitudes have no weighted sum"),
        ("combines-bias", part.config.lora_bias or part.config.bias != "none", "has trained biases"),
        ("combines-experts", _mixture(part.changes), "changes a mixture's experts or routers"),
        (
            "combines-replaced",
            _retrained(part.changes, source),
            "has retrained modules or tokens (modules_to_save, trainable_token_indices)",
        ),
    ):
        if found:
            message = f"{part.name} {what}; only plain LoRA can be combined. Merge it into the base model instead."
            raise Unmergeable(rule, message, found=part.name)


def _mixture(changes: Changes) -> bool:
    return bool(changes.layout.experts or changes.layout.routers)


def _retrained(changes: Changes, source: str) -> bool:
    """Whether any parameter is another than the base's: PEFT saves embeddings beside LoRA on them unchanged too."""
    replaced = [parameter for parameter, change in changes.parameters.items() if change.replaced or change.rows]
    checkpoint = read_checkpoint(source) if replaced else None
    for parameter in replaced:
        stored = checkpoint.alone(parameter) if checkpoint else None
        if stored is None or stored.dtype not in FLOATS or changes.replaces(parameter, stored):
            return True
    return False


def _ranks(parts: Sequence[Part], recipe: Recipe, base: BaseSpec, limits: Limits) -> dict[str, int]:
    """The result's modules in the order in which a model names them, embeddings first, and the rank of each."""
    if recipe.method in SAME_RANK and len({part.rank for part in parts}) > 1:
        ranks = ", ".join(f"{part.name} has {part.rank}" for part in parts)
        raise Unmergeable("combines-ranks", f"{recipe.method} takes adapters of one rank, but {ranks}; use svd or cat.")
    assert 0 < recipe.density <= 1 or recipe.method not in SPARSE
    found = {}
    for module in (*base.embeddings, *base.linears):
        ranks_here = [part.pairs[module].rank for part in parts if module in part.pairs]
        if not ranks_here:
            continue
        if recipe.method in SAME_RANK and len(set(ranks_here)) > 1:
            message = f"{recipe.method} takes pairs of one rank, but {module} has {ranks_here}; use svd or cat."
            raise Unmergeable("combines-ranks", message, tensor=module)
        sides = base.linears.get(module) or base.embeddings[module]
        found[module] = _rank(recipe, ranks_here, max(part.rank for part in parts), min(sides))
        if found[module] > limits.rank:
            message = (
                f"The result would have rank {found[module]} at {module}; use svd with a rank of {limits.rank} at most."
            )
            raise Unmergeable("combines-ranks", message, tensor=module, expected=f"at most {limits.rank}")
    return found


def _rank(recipe: Recipe, here: Sequence[int], largest: int, limit: int) -> int:
    match recipe.method:
        case "cat":
            return sum(here)
        case "svd":
            return min(recipe.rank or largest, limit)
        case _:
            return here[0]


def _entries(
    parts: Sequence[Part], module: str, rank: int, recipe: Recipe, base: BaseSpec, random: Generator
) -> Iterator[Entry]:
    """The two tensors of a module; both are computed when the first is asked for."""
    made: list[Tensor] = []
    linear = module in base.linears
    outputs, inputs = base.linears[module] if linear else reversed(base.embeddings[module])
    names = (A, B) if linear else (EMBEDDING_A, EMBEDDING_B)

    def first() -> Iterator[Tensor]:
        made.extend(_combined(parts, module, rank, recipe, random))
        yield made[0]

    def second() -> Iterator[Tensor]:
        yield made[1]
        made.clear()

    yield floats(written(Key(module, names[0])), "F32", (rank, inputs), first)
    yield floats(written(Key(module, names[1])), "F32", (outputs, rank), second)


def _combined(
    parts: Sequence[Part], module: str, rank: int, recipe: Recipe, random: Generator
) -> tuple[Tensor, Tensor]:
    weighted = []
    for part in parts:
        if (pair := part.pairs.get(module)) is not None:
            a, b = part.changes.tensor(pair.a), part.changes.tensor(pair.b)
            weighted.append(Weighted(a, b, part.weight * pair.scale))
    return combine(weighted, Recipe(recipe.method, recipe.density, rank, recipe.sign), random)


def _config(parts: Sequence[Part], ranks: Mapping[str, int], base: BaseSpec) -> dict[str, Any]:
    """An adapter_config.json as PEFT writes it. Its commonest rank is `r`; the others are a pattern."""
    common = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
    others = {module: rank for module, rank in ranks.items() if rank != common}
    return {
        "base_model_name_or_path": parts[0].config.base_model,
        "bias": "none",
        "fan_in_fan_out": not base.transposed.isdisjoint(ranks),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": common,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": common,
        "rank_pattern": others,
        "target_modules": _targets(list(ranks), base),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _targets(modules: list[str], base: BaseSpec) -> list[str]:
    """The last parts of the modules' names where those mean these modules and no others, else the whole names."""
    short = sorted({module.rpartition(".")[2] for module in modules})
    meant = placements(PeftConfig(rank=1, alpha=1, targets=frozenset(short)), base)
    return short if meant.keys() == set(modules) else modules
