"""Knows how a PEFT adapter's tensors lie over a base model: which does what to which module; never their values.

The file and the config must agree on every tensor, and the base must have every module. PEFT would skip what doesn't
match and serve the rest; here that is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from adapters.base import BaseSpec, routed
from adapters.errors import Finding, Rejected
from adapters.expected import Wanted, expected, unserved
from adapters.files import CONFIG, WEIGHTS
from adapters.header import Header, Tensor
from adapters.limits import DEFAULT, Limits
from adapters.matching import Placement, parameter_placements, placements, renamed, retrained, token_rows
from adapters.names import (
    CAUSES,
    EMBEDDING_A,
    EMBEDDING_B,
    LORA_BIAS,
    MAGNITUDE,
    ORIGINAL,
    PARTS,
    ROWS,
    WEIGHT,
    A,
    B,
    Key,
    foreign,
    is_pair,
    parameter,
    parse,
    written,
)
from adapters.pattern import PatternError, TooCostly
from adapters.peft_config import PeftConfig, read_config
from adapters.renaming import loaded
from adapters.stacks import Stack, not_fused, stacks, unstacked
from adapters.vocabulary import vocabularies, vocabulary

__all__ = ["ExpertPairs", "Layout", "LoraPair", "PeftConfig", "Replaced", "TokenRows", "layout", "read_config"]


@dataclass(frozen=True, slots=True)
class LoraPair:
    """`module(x) + scale * ((x @ A.T) @ B.T + bias)`: A = tensor `a` of [rank, inputs], B = tensor `b` of
    [outputs, rank], `bias` of [outputs]. On an embedding x is one-hot, and `inputs` the number of its rows.

    With `magnitude` of [outputs], DoRA: what W + scale * B @ A makes of x is multiplied, output by output, by magnitude
    over that matrix's norm (per row of a linear's weight, per column of an embedding's). `module` is the path in the
    base's named_modules(); the others are names in the safetensors file, "" where there is none.
    """

    module: str
    rank: int
    scale: float
    a: str
    b: str
    inputs: int
    outputs: int
    bias: str = ""
    magnitude: str = ""


@dataclass(frozen=True, slots=True)
class ExpertPairs:
    """`W[e] + scale * B[e] @ A[e]` for each expert e of `parameter` [experts, outputs, inputs]; A[e] is [rank, inputs].

    `a` and `b` name the tensors of all experts, or those of each expert's `parts` linears, expert by expert; how they
    are laid out says `adapters.stacks`.
    """

    parameter: str
    rank: int
    scale: float
    experts: int
    outputs: int
    inputs: int
    a: tuple[str, ...]
    b: tuple[str, ...]
    parts: int = 0


@dataclass(frozen=True, slots=True)
class Replaced:
    """`module` computes with `tensor` of the file instead of its own `parameter` (weight or bias)."""

    module: str
    parameter: str
    tensor: str


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Single rows that replace rows of an embedding or the head: `tensor` holds those of `numbers`, in this order."""

    module: str
    tensor: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All that an adapter changes, each in the order of the base's modules. A module has one pair at most."""

    linears: tuple[LoraPair, ...]
    embeddings: tuple[LoraPair, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    routers: tuple[LoraPair, ...] = ()
    experts: tuple[ExpertPairs, ...] = ()
    rows: tuple[TokenRows, ...] = ()


def layout(config: PeftConfig, header: Header, base: BaseSpec, limits: Limits = DEFAULT) -> Layout:
    """The adapter as changes of `base`'s modules. Raises Rejected with every finding."""
    asked = config
    try:
        config = renamed(asked, base, limits)
        modules = placements(config, base, limits)
        parameters = parameter_placements(config, base, limits)
    except PatternError as error:
        rule = "pattern-too-costly" if isinstance(error, TooCostly) else "pattern"
        message = f"A module pattern in {CONFIG} isn't taken: {error}; use plain module names."
        raise Rejected.because(rule, message) from error
    named = {key.module for name in header.tensors if (key := _key(name, base)) is not None}
    placed = modules | {
        module: placement
        for parameter, placement in parameters.items()
        if (module := parameter.removesuffix(f".{WEIGHT}")) in (*base.linears, *base.routers)
    }
    stacked = stacks(base, parameters, named)
    if config is not asked and asked.narrow:  # PEFT widens the names to all layers; what only it asks for does nothing
        placed = {module: placement for module, placement in placed.items() if module in named}
        stacked = {name: stack for name, stack in stacked.items() if not named.isdisjoint(stack.modules)}
    wanted = expected(config, base, placed)
    wanted |= {key: Wanted(shape, at) for stack in stacked.values() for key, shape, at in stack.shapes()}
    findings: list[Finding] = []
    found = _by_key(header, wanted, base, findings)
    if any(finding.rule in CAUSES for finding in findings):
        raise Rejected(findings)
    findings += _unmatched(found, wanted, base, config)
    findings += unserved(config, base, placed)
    findings += unstacked(config, base, parameters, stacked, limits)
    findings += _twice(modules, parameters)
    findings += _unasked(found, wanted, placed)
    findings += _misfits(found, wanted, base, config)
    if findings:
        raise Rejected(findings)
    pairs = [_pair(module, placement, base, found) for module, placement in placed.items()]
    return Layout(
        tuple(pair for pair in pairs if pair.module in base.linears),
        tuple(pair for pair in pairs if pair.module in base.embeddings),
        tuple(_replaced(found, base, set().union(*retrained(config, base).values()))),
        tuple(pair for pair in pairs if pair.module in base.routers),
        tuple(_expert_pairs(stack, found) for stack in stacked.values()),
        tuple(
            TokenRows(module, found[Key(source, ROWS)].name, numbers)
            for module, (source, numbers) in token_rows(config, base).items()
        ),
    )


def _twice(modules: Mapping[str, Placement], parameters: Mapping[str, Placement]) -> Iterator[Finding]:
    for module in modules:
        if f"{module}.{WEIGHT}" in parameters:
            message = f"{CONFIG} has {module} in target_modules and its weight in target_parameters; keep one of them."
            yield Finding("malformed-config", message, module)


def _expert_pairs(stack: Stack, found: Mapping[Key, Tensor]) -> ExpertPairs:
    a, b = (tuple(found[Key(module, part)].name for module in stack.modules) for part in (A, B))
    sides = (stack.experts, stack.outputs, stack.inputs)
    return ExpertPairs(stack.parameter, stack.rank, stack.scale, *sides, a, b, stack.parts)


def _by_key(header: Header, wanted: Mapping[Key, Wanted], base: BaseSpec, findings: list[Finding]) -> dict[Key, Tensor]:
    """The file's tensors as PEFT names them when it loads; what is neither a pair's nor the base's is no one's."""
    found: dict[Key, Tensor] = {}
    for name, tensor in header.tensors.items():
        key = _key(name, base)
        if key is None or not (key in wanted or is_pair(key) or parameter(key) in base.parameters):
            findings.append(foreign(name))
        elif key in found:
            what = f"PEFT loads it in place of {found[key].name}; upload the adapter as PEFT saved it."
            findings.append(Finding.about(name, "duplicate-tensor", what))
        else:
            found[key] = tensor
    return found


def _key(name: str, base: BaseSpec) -> Key | None:
    """What a tensor is, in the base's own words."""
    return parse(loaded(name, base.renamings))


def _unmatched(
    found: Mapping[Key, Tensor], wanted: Mapping[Key, Wanted], base: BaseSpec, config: PeftConfig
) -> Iterator[Finding]:
    """Modules with LoRA that only the file, only the base or only the config knows."""
    modules = dict.fromkeys(key.module for key in found if is_pair(key))
    placed = {key.module for key in wanted if is_pair(key)}
    known = placed | base.linears.keys() | base.embeddings.keys() | base.routers.keys()
    if modules and not modules.keys() & known:
        trained_on = f" (its config names {config.base_model})" if config.base_model else ""
        message = f"None of the adapter's modules is in this base model; upload it for its own{trained_on}."
        yield Finding("wrong-base-model", message, "", base.architecture, config.base_model)
    if not modules and not placed:
        yield Finding("no-modules", f"Nothing in {WEIGHTS} matches target_modules; check which modules were trained.")
    for name in modules:
        if name not in known and routed(name):
            yield not_fused(name, base)
        elif name not in known:
            what = "the base model has no such module; upload the adapter for the base model it was trained on."
            yield Finding.about(name, "unmatched-module", what, f"a module of {base.architecture}")
        elif name not in placed and name.rpartition(".")[2] in base.fused:
            what = (
                "PEFT with Transformers 5 takes its name for an expert's and leaves it out; train the adapter again "
                "with these versions, or merge it with the older ones."
            )
            yield Finding.about(name, "untargeted-module", what, "a target of the config")
        elif name not in placed:
            what = f"{WEIGHTS} changes it, but {CONFIG} doesn't target it; upload the two files of one adapter."
            yield Finding.about(name, "untargeted-module", what, "a target of the config")


def _unasked(
    found: Mapping[Key, Tensor], wanted: Mapping[Key, Wanted], placed: Mapping[str, Placement]
) -> Iterator[Finding]:
    """Tensors of known modules that the config's kind of training doesn't leave."""
    for key, tensor in found.items():
        if key not in wanted and (not is_pair(key) or key.module in placed):
            kind = PARTS[key.part if is_pair(key) else parameter(key).rpartition(".")[2]]
            what = f"the tensor is of {kind}, which {CONFIG} doesn't name; upload the two files of one adapter."
            yield Finding.about(tensor.name, "untargeted-tensor", what, "a tensor that the config asks for", key.part)


def _misfits(
    found: Mapping[Key, Tensor], wanted: Mapping[Key, Wanted], base: BaseSpec, config: PeftConfig
) -> Iterator[Finding]:
    """Tensors that are missing or of another shape."""
    sizes = vocabularies(found, wanted, base)
    yield from vocabulary(base, max(sizes.values(), default=0), config)
    for key, want in wanted.items():
        if key in sizes:
            continue
        if (tensor := found.get(key)) is not None:
            yield from _misfit(key, tensor, want)
        elif want.needed:
            what = f"{CONFIG} asks for this tensor, but {WEIGHTS} lacks it; upload the whole adapter."
            yield Finding.about(written(key), "missing-tensor", what, str(list(want.shape)), "nothing")


def _misfit(key: Key, tensor: Tensor, want: Wanted) -> Iterator[Finding]:
    if tensor.shape == want.shape:
        return
    expected_shape, shape = str(list(want.shape)), str(list(tensor.shape))
    if len(tensor.shape) != len(want.shape):
        what = f"the tensor has not {len(want.shape)} dimensions; gather sharded weights before saving."
        yield Finding.about(tensor.name, "shape", what, expected_shape, shape)
    elif any(a != b for at, (a, b) in enumerate(zip(tensor.shape, want.shape, strict=True)) if at != want.rank_at):
        what = "the tensor doesn't fit this base model; upload the adapter for the one it was trained on."
        yield Finding.about(tensor.name, "wrong-base-model", what, expected_shape, shape)
    else:
        what = f"the tensor has another rank than {CONFIG} says; upload the two files of one adapter."
        yield Finding.about(tensor.name, "rank-mismatch", what, expected_shape, shape)


def _pair(module: str, placement: Placement, base: BaseSpec, found: Mapping[Key, Tensor]) -> LoraPair:
    def name(part: str) -> str:
        tensor = found.get(Key(module, part))
        return "" if tensor is None else tensor.name

    rank, scale = placement.rank, placement.scale
    if module in base.embeddings:
        inputs, outputs = base.embeddings[module]
        a, b = name(EMBEDDING_A), name(EMBEDDING_B)
    else:
        outputs, inputs = base.linears.get(module) or base.routers[module]
        a, b = name(A), name(B)
    return LoraPair(module, rank, scale, a, b, inputs, outputs, name(LORA_BIAS), name(MAGNITUDE))


def _replaced(found: Mapping[Key, Tensor], base: BaseSpec, saved: Set[str]) -> Iterator[Replaced]:
    """Whole parameters, in the file's order. A tied base's own weight, saved with the adapter, is loaded into both the
    embedding and the head, the head's last; a retrained one (`saved`) into its module alone."""
    whole = {parameter(key): tensor.name for key, tensor in found.items() if parameter(key)}
    head, embedding = f"{base.head}.{WEIGHT}", f"{base.input_embedding}.{WEIGHT}"
    if base.tied and not {head, embedding} & saved and (tensor := whole.get(head) or whole.get(embedding)):
        whole |= {head: tensor, embedding: tensor}
    for one, other in ((base.head, embedding), (base.input_embedding, head)):
        original = found.get(Key(one, f"{ORIGINAL}{WEIGHT}"))
        if base.tied and original and other not in saved and (one == base.head or other not in whole):
            whole[other] = original.name  # the one weight that both had
    for name, tensor in whole.items():
        module, _, own = name.rpartition(".")
        yield Replaced(module, own, tensor)
