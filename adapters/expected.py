"""Knows which tensors an adapter's config promises for a base model, and their shapes; never what a file holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from adapters.base import BaseSpec, routed
from adapters.errors import Finding
from adapters.files import CONFIG
from adapters.matching import Placement, retrained, token_rows
from adapters.names import (
    BIAS,
    EMBEDDING_A,
    EMBEDDING_B,
    LORA_BIAS,
    MAGNITUDE,
    ORIGINAL,
    RETRAINED,
    ROWS,
    TOKENS,
    WEIGHT,
    WRAPPED,
    A,
    B,
    Key,
)
from adapters.peft_config import PeftConfig


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor. `rank_at`: which of its dimensions is the rank, -1 for none. `needed`: the file must have it."""

    shape: tuple[int, ...]
    rank_at: int = -1
    needed: bool = True


def expected(config: PeftConfig, base: BaseSpec, placed: Mapping[str, Placement]) -> dict[Key, Wanted]:
    """Every tensor that the file must or may hold, but those of experts."""
    wanted = dict(_pairs(config, base, placed))
    rows = token_rows(config, base)
    saved: set[str] = set().union(*retrained(config, base).values())
    whole = _biases(config, base, placed) | saved
    for parameter in base.parameters:
        if parameter in whole:
            wanted[_whole(parameter, placed, rows)] = Wanted(base.parameters[parameter])
    for parameter in _base_weights(base):
        for key in (_whole(parameter, placed, rows), *(_copies(parameter) if parameter in saved else ())):
            wanted.setdefault(key, Wanted(base.parameters[parameter], needed=False))
    for module, (source, numbers) in rows.items():
        shape = (len(numbers), base.parameters[f"{module}.{WEIGHT}"][1])
        wanted[Key(module, ROWS)] = Wanted(shape, needed=module == source)
    return wanted


def unserved(config: PeftConfig, base: BaseSpec, placed: Mapping[str, Placement]) -> Iterator[Finding]:
    """What the config asks for and this engine can't do on this base, whatever the file holds."""
    saved = retrained(config, base)
    whole = sorted(_biases(config, base, placed).union(*saved.values()))
    for name, parameters in saved.items():
        if not parameters:
            message = f"modules_to_save names {name}, of which the base model has nothing that can be served."
            yield Finding("unmatched-module", message, name, f"a module of {base.architecture}", name)
    for module in (*placed, *(parameter.rpartition(".")[0] for parameter in whole)):
        if routed(module):
            what = (
                "this adapter changes an expert that this base model keeps as a linear of its own, which isn't served; "
                f"leave {module.rpartition('.')[2]} out of target_modules."
            )
            yield Finding.about(module, "unsupported-experts", what, "modules outside of experts")
    yield from _unserved_rows(config, base, placed, whole)
    if config.lora_bias:
        for module in placed:
            if module in base.embeddings:
                what = "lora_bias can't be trained on an embedding; set lora_bias=false."
                yield Finding.about(module, "malformed-config", what)
    for parameter in whole:
        module = parameter.rpartition(".")[0]
        if parameter in base.vectors and module not in base.linears and base.vectors[parameter] != base.hidden_size:
            what = (
                f"{CONFIG} has it retrained, which isn't served: of modules that are neither linear nor "
                "embedding only norms over the hidden size are; leave it out."
            )
            yield Finding.about(parameter, "unsupported-module", what, f"[{base.hidden_size}]")


def _unserved_rows(
    config: PeftConfig, base: BaseSpec, placed: Mapping[str, Placement], whole: Sequence[str]
) -> Iterator[Finding]:
    rule, rows = "unsupported-trainable-tokens", token_rows(config, base)
    for end in config.tokens:
        if not any(module == base.input_embedding if not end else module.endswith(end) for module in rows):
            message = (
                f"trainable_token_indices names {end or 'the input embedding'}, which the base model doesn't have."
            )
            yield Finding("unmatched-module", message, end, f"a module of {base.architecture}", end)
    for module, (source, _) in rows.items():
        if (module in placed and (module == source or config.dora)) or f"{module}.{WEIGHT}" in whole:
            what = "single tokens of it and it as a whole are trained, which PEFT can't load either; train one of them."
            yield Finding.about(module, rule, what)
        elif module in base.linears and f"{module}.{BIAS}" in base.vectors:
            what = "single tokens of a head with a bias are trained, whose bias PEFT leaves out; leave it out."
            yield Finding.about(module, rule, what)


def _pairs(config: PeftConfig, base: BaseSpec, placed: Mapping[str, Placement]) -> Iterator[tuple[Key, Wanted]]:
    for module, placement in placed.items():
        if module in base.embeddings:
            inputs, outputs = base.embeddings[module]
            names = (EMBEDDING_A, EMBEDDING_B)
        else:
            outputs, inputs = base.linears.get(module) or base.routers[module]
            names = (A, B)
        yield Key(module, names[0]), Wanted((placement.rank, inputs), rank_at=0)
        yield Key(module, names[1]), Wanted((outputs, placement.rank), rank_at=1)
        if config.dora:
            yield Key(module, MAGNITUDE), Wanted((outputs,))
        if config.lora_bias and module in base.linears:
            yield Key(module, LORA_BIAS), Wanted((outputs,))


def _biases(config: PeftConfig, base: BaseSpec, placed: Mapping[str, Placement]) -> set[str]:
    """The base's own biases that were trained."""
    biases = {name for name in base.vectors if name.endswith(f".{BIAS}")}
    if config.bias == "lora_only":
        return {name for name in biases if name.removesuffix(f".{BIAS}") in placed}
    return biases if config.bias == "all" else set()


def _base_weights(base: BaseSpec) -> Iterator[str]:
    """PEFT saves the base's own embedding and head beside LoRA on them (save_embedding_layers), and loads them."""
    for module in (base.input_embedding, base.head):
        for part in (WEIGHT, BIAS):
            if (parameter := f"{module}.{part}") in base.parameters:
                yield parameter


def _whole(parameter: str, placed: Collection[str], rows: Collection[str]) -> Key:
    module, _, part = parameter.rpartition(".")
    if module in placed:
        return Key(module, f"{WRAPPED}{part}")
    return Key(module, f"{TOKENS}{part}" if module in rows else part)


def _copies(parameter: str) -> tuple[Key, Key]:
    module, _, part = parameter.rpartition(".")
    return Key(module, f"{RETRAINED}{part}"), Key(module, f"{ORIGINAL}{part}")
