"""Knows every place of a model that adapters may change, and puts a slot's weights there; never digests or requests."""

from torch import Tensor, nn

from adapters.base import BaseSpec, routed
from inference.kernels.sgmm import Table
from inference.lora.embedding import LoraEmbedding
from inference.lora.linear import Batch, LoraLinear
from inference.lora.replaced import Replaced
from inference.lora.weights import AdapterWeights


class Sites:
    """The model's linears and embeddings, by module path; the model is changed in place.

    batch   what the layers see: all rows of the step
    head    what the output head sees: the rows that are sampled
    frozen  the base's own parameters, by name
    rare    the slots that change more than linears by pairs: steps with them run in Python, segment by segment
    """

    def __init__(self, model: nn.Module, slots: int, spec: BaseSpec) -> None:
        self.batch = Batch()
        self.head = Batch()
        self.frozen: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._linears: dict[str, LoraLinear] = {}
        self._embeddings: dict[str, LoraEmbedding] = {}
        self._others: dict[str, Replaced] = {}
        self._model = model
        self.rare: set[int] = set()
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name in spec.linears and not routed(name):
                table = Table(slots, module.in_features, module.out_features, module.weight.device)
                self._linears[name] = LoraLinear(module, table, self.head if name == spec.head else self.batch)
                model.set_submodule(name, self._linears[name])
            elif isinstance(module, nn.Embedding) and name in spec.embeddings:
                self._embeddings[name] = LoraEmbedding(module, self.batch)
                model.set_submodule(name, self._embeddings[name])

    @property
    def tables(self) -> dict[str, Table]:
        return {name: linear.table for name, linear in self._linears.items()}

    def install(self, slot: int, weights: AdapterWeights) -> None:
        """Make a slot's rows use these weights. The slot must be empty."""
        if weights.embeddings or weights.corrections or weights.parameters:
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
        for name, parameters in weights.parameters.items():
            if name not in self._others:
                self._others[name] = Replaced(self._model.get_submodule(name), self.batch)
            self._others[name].set(slot, parameters)

    def clear(self, slot: int) -> None:
        """Make a slot's rows use the base's own weights, and let go of the slot's tensors."""
        self.rare.discard(slot)
        for linear in self._linears.values():
            linear.table.clear(slot)
            linear.corrections.pop(slot, None)
        for embedding in self._embeddings.values():
            embedding.clear(slot)
        for other in self._others.values():
            other.clear(slot)
