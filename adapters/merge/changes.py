"""Knows what an adapter makes of each of its base's parameters, by blocks of rows; never files' layout or models.

For a linear W [out, in] that is W + scale * B @ A, and with DoRA each row of that times magnitude over its norm; for an
embedding [rows, width], and a linear that keeps its weight as [in, out], it is W + scale * (B @ A).T, with DoRA each
column. A replaced parameter stands for W. Of a mixture's experts, [experts, out, in], each is a linear's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.base import BaseSpec
from adapters.files import CONFIG, WEIGHTS
from adapters.header import read_header
from adapters.limits import DEFAULT
from adapters.merge.checkpoint import FLOATS, Stored
from adapters.peft import ExpertPairs, Layout, LoraPair, layout, read_config
from adapters.stacks import joined

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one parameter: it is replaced, in whole or in rows, or a pair, all experts' pairs or a bias are
    added to it."""

    replaced: str = ""
    rows: tuple[str, tuple[int, ...]] | None = None
    pair: LoraPair | None = None
    bias: LoraPair | None = None
    experts: ExpertPairs | None = None


class Changes:
    """An adapter's files, open for reading. Raises Rejected unless they fit `base`."""

    def __init__(self, folder: Path, base: BaseSpec) -> None:
        header = read_header(folder / WEIGHTS, DEFAULT.within(base))
        self.layout = layout(read_config(folder / CONFIG), header, base)
        self.parameters = _by_parameter(self.layout)
        self._turned = base.transposed.union(base.embeddings)
        self._tensors: Mapping[str, Stored] = {
            tensor.name: Stored(tensor.name, tensor.dtype, tensor.shape, folder / WEIGHTS, tensor.start, tensor.end)
            for tensor in header.tensors.values()
        }
        self._factors: dict[str, Tensor] = {}
        self._kept: tuple[str, Tensor] | None = None
        self._joined: tuple[str, tuple[Tensor, Tensor]] | None = None

    @property
    def tensors(self) -> Collection[Stored]:
        """All that the file holds."""
        return self._tensors.values()

    def rows(self, parameter: str, stored: Stored, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of what the adapter makes of the parameter, whose own are `stored`; float32."""
        change = self.parameters.get(parameter, Change())
        own = self.own(parameter, stored, start, stop)
        if change.pair is not None:
            own = self._added(change.pair, own, start, stop)
            if change.pair.magnitude and change.pair.module in self._turned:
                own *= self.column_factor(parameter, stored)
            elif change.pair.magnitude:
                own *= self._row_factor(change.pair, own, start, stop)[:, None]
        if change.experts is not None:
            for expert in range(start, stop):
                self.add_expert(own[expert - start], change.experts, expert)
        if change.bias is not None:
            own += change.bias.scale * self.tensor(change.bias.bias, start, stop)
        return own

    def add_expert(self, own: Tensor, pairs: ExpertPairs, expert: int, first: int = 0) -> None:
        """Bring an expert's rows from `first` on, in place, to what the adapter makes of them; float32."""
        if self._joined is None or self._joined[0] != pairs.parameter:
            self._joined = None
            a, b = ([self._tensors[name].read() for name in names] for names in (pairs.a, pairs.b))
            self._joined = pairs.parameter, joined(pairs.parts, pairs.experts, a, b)
        inner, outer = (side[expert].float() for side in self._joined[1])
        own.addmm_(outer[first : first + len(own)], inner, alpha=pairs.scale)

    def own(self, parameter: str, stored: Stored, start: int, stop: int) -> Tensor:
        """Rows of the parameter before any pair: the base's own, or what replaces them, in the base's dtype."""
        import torch

        change, dtype = self.parameters.get(parameter, Change()), getattr(torch, FLOATS[stored.dtype])
        source = self._tensors[change.replaced] if change.replaced else stored
        own: Tensor = source.read(start, stop).to(dtype).float()
        tensor, numbers = change.rows or ("", ())
        for at, row in enumerate(numbers):
            if start <= row < stop:
                own[row - start] = self._tensors[tensor].read(at, at + 1)[0].to(dtype)
        return own

    def replaces(self, parameter: str, stored: Stored) -> bool:
        """Whether the adapter replaces the parameter by other values than the base's own, in the base's dtype."""
        import torch

        return any(
            not torch.equal(self.own(parameter, stored, start, stop), stored.read(start, stop).float())
            for start, stop in stored.blocks()
        )

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of one of the adapter's tensors, in float32."""
        return self._tensors[name].read(start, stop).float()

    def norms(self, pair: LoraPair, own: Tensor, start: int, stop: int) -> Tensor:
        """The factor that DoRA gives rows [start, stop) of a linear, whose weights before the pair are `own`."""
        return self._row_factor(pair, self._added(pair, own.clone(), start, stop), start, stop)

    def _added(self, pair: LoraPair, own: Tensor, start: int, stop: int) -> Tensor:
        a = self._a(pair)
        if pair.module in self._turned:
            return own.addmm_(a[:, start:stop].T.float(), self.tensor(pair.b).T, alpha=pair.scale)
        return own.addmm_(self.tensor(pair.b, start, stop), a.float(), alpha=pair.scale)

    def _a(self, pair: LoraPair) -> Tensor:
        """A whole, since an embedding's rows lie across it; the last one is kept."""
        if self._kept is None or self._kept[0] != pair.a:
            self._kept = None
            self._kept = (pair.a, self._tensors[pair.a].read())
        return self._kept[1]

    def _row_factor(self, pair: LoraPair, added: Tensor, start: int, stop: int) -> Tensor:
        import torch

        norms: Tensor = torch.linalg.norm(added, dim=1)
        return self.tensor(pair.magnitude, start, stop) / norms

    def column_factor(self, parameter: str, stored: Stored) -> Tensor:
        """The factor that DoRA gives each column of an embedding, or of a linear's weight [in, out]."""
        import torch

        if parameter not in self._factors:
            pair = self.parameters[parameter].pair
            assert pair is not None
            squares = torch.zeros(pair.outputs, dtype=torch.float64)
            for start, stop in stored.blocks():
                block = self._added(pair, self.own(parameter, stored, start, stop), start, stop)
                squares += block.square_().sum(dim=0, dtype=torch.float64)
            self._factors[parameter] = self.tensor(pair.magnitude) / squares.sqrt().float()
        return self._factors[parameter]


def _by_parameter(plan: Layout) -> Mapping[str, Change]:
    changes = {f"{each.module}.{each.parameter}": Change(replaced=each.tensor) for each in plan.replaced}
    for rows in plan.rows:
        weight = f"{rows.module}.weight"
        changes[weight] = replace(changes.get(weight, Change()), rows=(rows.tensor, rows.numbers))
    for pair in (*plan.linears, *plan.embeddings, *plan.routers):
        weight, bias = f"{pair.module}.weight", f"{pair.module}.bias"
        changes[weight] = replace(changes.get(weight, Change()), pair=pair)
        if pair.bias:
            changes[bias] = replace(changes.get(bias, Change()), bias=pair)
    return changes | {pairs.parameter: Change(experts=pairs) for pairs in plan.experts}
