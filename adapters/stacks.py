"""Knows how an adapter's file names the pairs of a mixture's experts, and their shapes; never their values.

PEFT (`ParamWrapper`, tuners/lora/layer.py) keeps all of a parameter's pairs in two tensors: A is [experts * rank, in],
the rows of expert e from e * rank on; B is [out, rank * experts], the columns of expert e at e, e + experts, …. It
wraps a module once for each of its parameters, one around the other: the tensors of the last one are found below the
module itself, those of the others below one `base_layer` more each.

Older files have A and B of separate linears, `experts.<e>.<part>`. PEFT joins those of one parameter, whose rank is
then that of all its parts together: A below A, and B beside B, zero where another part's outputs are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapters.base import BaseSpec
from adapters.errors import Finding
from adapters.files import CONFIG, WEIGHTS
from adapters.limits import Limits
from adapters.matching import Placement
from adapters.names import A, B, Key
from adapters.peft_config import PeftConfig

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPER: Final = ".base_layer"


@dataclass(frozen=True, slots=True)
class Stack:
    """What an adapter does to one parameter of experts, by where its file says so: below one of `modules`, or below the
    linears `experts`-times `parts`, each expert's together. `rank` is that of the whole parameter."""

    parameter: str
    rank: int
    scale: float
    experts: int
    outputs: int
    inputs: int
    modules: tuple[str, ...]
    parts: int = 0

    def shapes(self) -> Iterator[tuple[Key, tuple[int, int], int]]:
        """Every tensor, its shape, and which of its dimensions is the rank."""
        share, parts = (self.rank // self.parts, self.parts) if self.parts else (self.rank * self.experts, 1)
        for module in self.modules:
            yield Key(module, A), (share, self.inputs), 0
            yield Key(module, B), (self.outputs // parts, share), 1


def stacks(base: BaseSpec, placed: Mapping[str, Placement], known: Set[str]) -> dict[str, Stack]:
    """Return, for each experts' parameter, where its pairs lie in a file that has pairs of the modules `known`."""
    return {parameter: _stack(base, placed, parameter, known) for parameter in placed if parameter in base.experts}


def _stack(base: BaseSpec, placed: Mapping[str, Placement], parameter: str, known: Set[str]) -> Stack:
    shape, placement = base.experts[parameter], placed[parameter]
    owner, _, _ = parameter.rpartition(".")
    apart = tuple(f"{owner}.{expert}.{part}" for expert in range(shape.experts) for part in shape.parts)
    parts = len(shape.parts) if not known.isdisjoint(apart) else 0
    last = [other for other in placed if other.rpartition(".")[0] == owner]
    within = owner + _WRAPPER * (len(last) - 1 - last.index(parameter))
    modules = apart if parts else (within,)
    sides = (shape.experts, shape.outputs, shape.inputs)
    return Stack(parameter, placement.rank, placement.scale, *sides, modules, parts)


def joined(parts: int, experts: int, a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A [experts, rank, in] and B [experts, out, rank] of a file's tensors; views where those are of all experts."""
    import torch

    block: Callable[..., Tensor] = torch.block_diag
    if parts:
        each = [block(*b[at : at + parts]) for at in range(0, len(b), parts)]
        return torch.cat(list(a)).view(experts, -1, a[0].shape[1]), torch.stack(each)
    columns = b[0].view(len(b[0]), -1, experts)
    return a[0].view(experts, -1, a[0].shape[1]), columns.permute(2, 0, 1)


def unstacked(
    config: PeftConfig, base: BaseSpec, placed: Mapping[str, Placement], made: Mapping[str, Stack], limits: Limits
) -> Iterator[Finding]:
    """What target_parameters asks for, in the file's own words or in PEFT's for it, and has no place here."""
    trained = [name for name, used in (("use_dora", config.dora), ("lora_bias", config.lora_bias)) if used]
    for name in trained if placed else ():
        message = f"{name} can't be combined with experts or target_parameters, in PEFT neither; train without it."
        yield Finding("malformed-config", message, "", f"{name} unset", "true")
    for parameter in placed:
        module = parameter.removesuffix(".weight")
        if parameter not in base.experts and module not in base.linears and module not in base.routers:
            message = f"target_parameters names {parameter}, no weight of a linear, experts or a router; leave it out."
            yield Finding("unsupported-target-parameters", message, parameter)
    for parameter, stack in made.items():
        if stack.rank > limits.rank:
            message = f"All parts of {parameter} together have rank {stack.rank}; train with a lower one."
            yield Finding("rank", message, parameter, f"1 to {limits.rank}", str(stack.rank))
        if stack.parts > 1 and f"{parameter.rpartition('.')[0]}.down_proj" not in made:
            message = (
                f"{parameter} was trained without down_proj beside it, which PEFT with Transformers 5 does not load; "
                "train it again with these versions, or merge it with the older ones."
            )
            yield Finding("unsupported-experts", message, parameter)


def not_fused(module: str, base: BaseSpec) -> Finding:
    """Why pairs of experts that the config or the base doesn't know can't be served."""
    owners = {parameter.rpartition(".")[0] for parameter in base.experts}
    if not owners:
        why = "whose experts, if it has any, compute in a way that isn't served; leave experts out of target_modules"
    elif base.fused:
        why = f"of which {CONFIG} targets other experts; upload the two files of one adapter"
    else:
        own = " and ".join(f"experts.{name}" for name in dict.fromkeys(p.rpartition(".")[2] for p in base.experts))
        why = f"of which PEFT with Transformers 5 does not read experts so; train with target_parameters {own}"
    message = f"{WEIGHTS} changes {module} of {base.architecture}, {why}."
    return Finding("unsupported-experts", message, module, "pairs that PEFT loads", module)
