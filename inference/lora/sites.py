"""Knows every place of a model that adapters may change, and puts a slot's weights there; never digests or requests."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from adapters.base import BaseSpec, routed
from inference.kernels.linear import Joined, Linears, Packed, joinable, packable
from inference.kernels.operands import Table
from inference.lora.embedding import LoraEmbedding
from inference.lora.experts import LoraExperts
from inference.lora.linear import Batch, LoraLinear, Siblings, straightened
from inference.lora.replaced import Replaced
from inference.lora.weights import AdapterWeights


class Frozen(Mapping[str, Tensor]):
    """The base's own parameters by name, linears' weights as [out, in]; those that siblings took over are asked of them
    anew at every look."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self._plain = parameters
        self._packed: dict[str, LoraLinear] = {}

    def unpack(self, name: str, linear: LoraLinear) -> None:
        """From now on take the parameter from this linear's weight."""
        del self._plain[name]
        self._packed[name] = linear

    def __getitem__(self, name: str) -> Tensor:
        return self._packed[name].weight if name in self._packed else self._plain[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._plain, *self._packed))

    def __len__(self) -> int:
        return len(self._plain) + len(self._packed)


class Sites:
    """The model's linears, embeddings and experts, by module path; the model is changed in place.

    batch   what the layers see: all rows of the step
    head    what the output head, and whatever else comes after the last layer, sees: the rows that are sampled
    frozen  the base's own parameters, by name
    rare    the slots that change more than linears by pairs: steps with them run in Python, segment by segment
    """

    def __init__(self, model: nn.Module, slots: int, spec: BaseSpec) -> None:
        self.batch = Batch()
        self.head = Batch()
        for name in spec.transposed:
            model.set_submodule(name, straightened(model.get_submodule(name)))
        self.frozen = Frozen(dict(model.named_parameters(remove_duplicate=False)))
        self._linears: dict[str, LoraLinear] = {}
        self._embeddings: dict[str, LoraEmbedding] = {}
        self._experts: dict[str, LoraExperts] = {}
        self._others: dict[str, Replaced] = {}
        self._sampled: set[nn.Module] = set()
        self._model = model
        self.rare: set[int] = set()
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name in spec.linears and not routed(name):
                table = Table(slots, module.in_features, module.out_features, module.weight.device)
                self._linears[name] = LoraLinear(module, table, self.head if name == spec.head else self.batch)
                model.set_submodule(name, self._linears[name])
            elif name in spec.embeddings:
                self._embeddings[name] = LoraEmbedding(module, self.batch)
                model.set_submodule(name, self._embeddings[name])
        for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in spec.experts):
            self._experts[name] = LoraExperts(model.get_submodule(name), slots, self.batch)
            model.set_submodule(name, self._experts[name])

    @property
    def tables(self) -> dict[str, Table]:
        return {name: linear.table for name, linear in self._linears.items()}

    def pack(self, run: Callable[[], object], rows: int) -> frozenset[str]:
        """Compute linears that read the same x, as the forward pass `run` shows, in one call; on a CPU, each in one.

        `run` is over `rows` rows of which one is sampled: what sees one row alone sees the sampled ones. Returns the
        linears that see neither: they stay the model's own, since no segments say whose rows theirs are.
        """
        read: list[tuple[Tensor, LoraLinear]] = []

        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and _is_one_row(inputs[0]):
                self._sampled.add(module)
            if isinstance(module, LoraLinear):
                module.batch = self.head if module in self._sampled else self.batch
                read.append((inputs[0], module))

        hooks = [module.register_forward_pre_hook(note) for module in self._model.modules()]
        run()
        for hook in hooks:
            hook.remove()
        strange = {linear for x, linear in read if x.numel() // x.shape[-1] not in (1, rows)}
        names = frozenset(name for name, linear in self._linears.items() if linear in strange)
        for name in names:
            self._model.set_submodule(name, self._linears.pop(name).linear)
        for group in _together([each for each in read if each[1] not in strange]):
            _unite(group)
        for name, linear in self._linears.items():
            if linear.siblings is None:
                _unite([linear])
            if linear.siblings is not None:
                self.frozen.unpack(f"{name}.weight", linear)
        return names

    def install(self, slot: int, weights: AdapterWeights) -> None:
        """Make a slot's rows use these weights. The slot must be empty."""
        if weights.embeddings or weights.corrections or weights.parameters or weights.experts:
            self.rare.add(slot)
        for name, (a, b, scale) in weights.pairs.items():
            self._linears[name].table.set(slot, a, b, scale)
        for name, pair in weights.embeddings.items():
            self._embeddings[name].pairs[slot] = pair
        for name, correction in weights.corrections.items():
            if name in self._linears:
                self._linears[name].corrections[slot] = correction
            else:
                self._embeddings[name].correct(slot, correction)
        for name, (a, b, scale) in weights.experts.items():
            module, _, parameter = name.rpartition(".")
            self._experts[module].table(parameter).fill(slot, a, b, scale)
        for name, parameters in weights.parameters.items():
            if name not in self._others:
                other = self._model.get_submodule(name)
                self._others[name] = Replaced(other, self.head if other in self._sampled else self.batch)
            self._others[name].set(slot, parameters)

    def clear(self, slot: int) -> None:
        """Make a slot's rows use the base's own weights, and let go of the slot's tensors."""
        self.rare.discard(slot)
        for linear in self._linears.values():
            linear.table.clear(slot)
            linear.corrections.pop(slot, None)
        for embedding in self._embeddings.values():
            embedding.clear(slot)
        for experts in self._experts.values():
            experts.clear(slot)
        for other in self._others.values():
            other.clear(slot)


def _is_one_row(x: Tensor) -> bool:
    return x.is_floating_point() and x.dim() > 1 and x.numel() == x.shape[-1]


def _unite(group: list[LoraLinear]) -> None:
    """Compute them in one call from now on, where there is one for them."""
    if all(packable(m.weight) and type(m.linear).forward is nn.Linear.forward for m in group):
        Siblings(group, Linears([(Packed(m.linear.weight, m.linear.bias), m.table) for m in group]))
    elif joinable([member.linear for member in group]):
        Siblings(group, Joined([(member.linear, member.table) for member in group]))


def _together(read: list[tuple[Tensor, LoraLinear]]) -> Iterator[list[LoraLinear]]:
    """Neighbours that read the same x, each linear once."""
    group: list[LoraLinear] = []
    last: Tensor | None = None
    seen: set[LoraLinear] = set()
    for x, linear in read:
        if linear in seen:
            continue
        seen.add(linear)
        if group and (x is not last or linear.batch is not group[0].batch):
            yield group
            group = []
        group.append(linear)
        last = x
    if group:
        yield group
