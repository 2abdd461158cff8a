"""Knows which modules of a base model a PEFT config changes, and how strongly; never tensors or files.

PEFT 0.21 is the reference: `check_target_module_exists` and `_maybe_include_all_linear_layers` (tuners/tuners_utils.py)
say which, `get_pattern_key` (utils/other.py) and `LoraLayer.update_layer` (tuners/lora/layer.py) how strongly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from adapters.base import BaseSpec
from adapters.errors import Rejected
from adapters.limits import DEFAULT, Limits
from adapters.pattern import Budget, Pattern
from adapters.peft_config import PeftConfig

Match = Callable[[str], bool]

_PLAIN: Final = re.compile(r"\^?[\w.-]+")
_ANY_LAYER: Final = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")


@dataclass(frozen=True, slots=True)
class Placement:
    """What the config says of one module: its LoRA rank, and alpha over rank (or over its root) in `scale`."""

    rank: int
    scale: float


def placements(config: PeftConfig, base: BaseSpec, limits: Limits = DEFAULT) -> dict[str, Placement]:
    """Every linear and embedding of `base` that `config` targets, in the base's order. Raises PatternError."""
    budget = Budget(limits.pattern_steps)
    targeted = _targets(config, base, budget)
    chosen = {name for name in (*base.linears, *base.embeddings) if targeted(name)}
    if config.tie and base.tied and base.input_embedding in chosen:
        chosen.add(base.head)
    return _placed(config, (name for name in (*base.linears, *base.embeddings) if name in chosen), budget)


def parameter_placements(config: PeftConfig, base: BaseSpec, limits: Limits = DEFAULT) -> dict[str, Placement]:
    """Every parameter of `base` that target_parameters names, by its path, in the base's order. Raises PatternError.

    In PEFT `_inject_parameters` (tuners/tuners_utils.py), which knows no layers_to_transform and no exclusions.
    """
    names, suffixes = config.parameters, _suffixes(config.parameters)
    chosen = [name for name in (*base.parameters, *base.experts) if name in names or name.endswith(suffixes)]
    return _placed(config, chosen, Budget(limits.pattern_steps))


def _placed(config: PeftConfig, names: Iterable[str], budget: Budget) -> dict[str, Placement]:
    ranks = [(_suffix(key, budget), rank) for key, rank in config.rank_pattern.items()]
    alphas = [(_suffix(key, budget), alpha) for key, alpha in config.alpha_pattern.items()]
    placed = {}
    for name in names:
        rank = next((rank for matches, rank in ranks if matches(name)), config.rank)
        alpha = next((alpha for matches, alpha in alphas if matches(name)), config.alpha)
        placed[name] = Placement(rank, alpha / (math.sqrt(rank) if config.rslora else rank))
    return placed


def renamed(config: PeftConfig, base: BaseSpec, limits: Limits = DEFAULT) -> PeftConfig:
    """The config in the base's words where it is in those of a Transformers that kept experts apart.

    As PEFT does it whenever it reads a config (`_convert_peft_config_moe`, utils/transformers_weight_conversion.py):
    names of `base.fused` are parameters, whatever else has them; what joins several names has as many times the rank
    and alpha. Raises PatternError, and Rejected for what PEFT itself does not take.
    """
    targets = _ends(config, base, Budget(limits.pattern_steps)) if base.fused else frozenset()
    old = {target: name for target in targets for name in base.fused if target == name or target.endswith(f".{name}")}
    if not old:
        return config
    ranks, alphas = dict(config.rank_pattern), dict(config.alpha_pattern)
    for new in dict.fromkeys(base.fused.values()):
        joined = [name for name in base.fused if base.fused[name] == new]
        present = {name for name in old.values() if name in joined}
        if 0 < len(present) < len(joined):
            lacking = " and ".join(sorted({*joined} - present))
            message = (
                f"target_modules has {' and '.join(sorted(present))} without {lacking}, which are one parameter of "
                f"this base model ({new}), so PEFT does not load it either; train both."
            )
            raise Rejected.because("unsupported-experts", message, expected=", ".join(joined))
        if len(joined) > 1 and present:
            ranks[rf".*\.{re.escape(new)}"] = config.rank * len(joined)
            alphas[rf".*\.{re.escape(new)}"] = config.alpha * len(joined)
    return replace(
        config,
        targets=frozenset(targets) - old.keys(),
        parameters=config.parameters | {base.fused[name] for name in old.values()},
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )


def _ends(config: PeftConfig, base: BaseSpec, budget: Budget) -> frozenset[str]:
    """The target modules as a list of names. Of a regex, the last parts of what it matches, as PEFT takes them: of
    modules, of parameters, and of experts as they were apart."""
    if not isinstance(config.targets, str):
        return config.targets
    targeted = _targets(config, base, budget)
    modules = [name for name in (*base.linears, *base.embeddings) if targeted(name)]
    if config.all_linear:
        return frozenset(_last(name) for name in modules) | base.fused.keys()
    names = (*modules, *(name for name in (*base.routers, *base.experts) if targeted(name)))
    owners = {name.rpartition(".")[0]: name.rpartition(".")[2] for name in base.experts}
    apart = {old for old, new in base.fused.items() for owner in owners if targeted(f"{owner}.{old}")}
    return frozenset(map(_last, names)) | {old for old in apart if base.fused[old] in map(_last, base.experts)}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def retrained(config: PeftConfig, base: BaseSpec) -> dict[str, set[str]]:
    """The parameters of `base` in the modules that each name of modules_to_save ends.

    PEFT (`_set_trainable`, utils/other.py) takes the end of a module's name, not its last part: "norm" is
    input_layernorm too. Below such a module everything is retrained.
    """
    found: dict[str, set[str]] = {name: set() for name in config.saved}
    for parameter in base.parameters:
        parts = parameter.split(".")
        modules = [".".join(parts[:length]) for length in range(1, len(parts))] if config.saved else []
        for name in config.saved:
            if any(module.endswith(name) for module in modules):
                found[name].add(parameter)
    for parameters in found.values():
        if config.tie and base.tied and f"{base.input_embedding}.weight" in parameters:
            parameters.add(f"{base.head}.weight")
    return found


def token_rows(config: PeftConfig, base: BaseSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return, for each module with retrained rows, the module that the file names them by, and the rows' numbers.

    As PEFT ties them (`set_additional_trainable_modules`, utils/other.py): on a tied base the head has the embedding's,
    unless the config gives it others.
    """
    modules = (*base.linears, *base.embeddings)
    rows = {
        module: (module, numbers)
        for end, numbers in config.tokens.items()
        for module in modules
        if (module == base.input_embedding if not end else module.endswith(end))
    }
    shared = rows.get(base.input_embedding)
    if base.tied and shared and (base.head not in rows or rows[base.head][1] == shared[1]):
        rows[base.head] = shared
    return rows


def _targets(config: PeftConfig, base: BaseSpec, budget: Budget) -> Match:
    excluded = _excludes(config.excluded, budget)
    saved = _saves(config, budget)
    included = _includes(config, base, budget)
    return lambda name: not excluded(name) and not saved(name) and included(name)


def _saves(config: PeftConfig, budget: Budget) -> Match:
    """A module that is retrained as a whole has no LoRA, nor has anything in it. As in PEFT a dot is any character."""
    expressions = [re.compile(rf"(^|.*\.){name}($|\..*)") for name in config.saved]

    def saved(name: str) -> bool:
        budget.spend(5 * len(expressions))
        return any(expression.match(name) for expression in expressions)

    return saved


def _excludes(excluded: frozenset[str] | str, budget: Budget) -> Match:
    if not excluded:
        return lambda name: False
    if isinstance(excluded, str):
        return _whole(excluded, budget)
    suffixes = _suffixes(excluded)
    return lambda name: name in excluded or name.endswith(suffixes)


def _includes(config: PeftConfig, base: BaseSpec, budget: Budget) -> Match:
    if config.all_linear:
        return lambda name: name in base.linears and name != base.head
    if isinstance(config.targets, str):
        return _whole(config.targets, budget)
    names, suffixes, in_layers = config.targets, _suffixes(config.targets), _layers(config)
    return lambda name: name in names or (name.endswith(suffixes) and in_layers(name))


def _layers(config: PeftConfig) -> Match:
    """The first number in the name counts as its layer: after a name of layers_pattern, where there is any."""
    if not config.layers:
        return lambda name: True
    named = [re.compile(rf"(?:^|.*?\.){name}\.(?P<index>\d+)\.") for name in config.layers_pattern]
    expressions: Sequence[re.Pattern[str]] = named or [_ANY_LAYER]

    def in_layers(name: str) -> bool:
        found = next((match for expression in expressions if (match := expression.match(name))), None)
        return found is not None and int(found["index"]) in config.layers

    return in_layers


def _suffixes(names: frozenset[str]) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names)


def _whole(source: str, budget: Budget) -> Match:
    pattern = Pattern(source, budget)
    return lambda name: pattern.fullmatch(name, budget)


def _suffix(key: str, budget: Budget) -> Match:
    """How a key of rank_pattern or alpha_pattern matches. Plain names can't be slow, so `re` may have those."""
    source = rf"(.*\.)?({key})$"
    if not _PLAIN.fullmatch(key):
        pattern = Pattern(source, budget)
        return lambda name: pattern.match(name, budget)
    budget.spend(5 * len(source))
    expression = re.compile(source)

    def matches(name: str) -> bool:
        budget.spend()
        return expression.match(name) is not None

    return matches
