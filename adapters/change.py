"""Knows how much adapters change each module of their base, and how far two of them are apart; never torch or scores.

The change of a module by a pair is D = scale * B @ A, of [outputs, inputs]; it is never formed. With tr(Dᵀ E) written
out in factors,

    <B A, C E> = sum((Bᵀ C) * (A Eᵀ))        so        |B A|² = sum((Bᵀ B) * (A Aᵀ)),

which needs matrices of [rank, rank] alone, added up over slices of the files. (Frobenius norms throughout.) Of a
mixture's experts all are one module, whose products are the sums of theirs. What DoRA, retrained modules and biases
change besides is not in D; `beside` names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adapters import strictjson
from adapters.base import BaseSpec
from adapters.errors import printable
from adapters.files import CONFIG, WEIGHTS
from adapters.header import Header, Tensor, read_header
from adapters.limits import DEFAULT, MIB
from adapters.peft import ExpertPairs, Layout, LoraPair, layout, read_config

Matrix = NDArray[Any]
Pair = LoraPair | ExpertPairs

SLICE: Final = 4 * MIB  # bytes of a matrix that are in memory at once, per adapter
NOISE: Final = 1e-7  # of the norms; a difference below it is rounding
SHOWN: Final = 1_000  # characters of a config's field
_DTYPES: Final = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Module:
    """One module that either of two adapters changes. Pairs are (the first's, the second's); None: does not change it.

    `difference`: |D - E|. `beside`: what else the two do to the module.
    """

    module: str
    ranks: tuple[int | None, int | None]
    norms: tuple[float | None, float | None]
    difference: float
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two adapters of one base. `config`: the fields that differ. `norms` and `difference`: over all modules."""

    config: Mapping[str, tuple[Any, Any]]
    modules: tuple[Module, ...]
    norms: tuple[float, float]
    difference: float


class Adapter:
    """An adapter's two files, opened for reading in slices. Raises Rejected where they don't fit the base, OSError."""

    def __init__(self, folder: Path, base: BaseSpec) -> None:
        self.config = strictjson.loads((folder / CONFIG).read_bytes())
        self.header: Header = read_header(folder / WEIGHTS, DEFAULT.within(base))
        self.layout: Layout = layout(read_config(folder / CONFIG), self.header, base)
        plain = (*self.layout.linears, *self.layout.embeddings, *self.layout.routers)
        self.pairs: dict[str, Pair] = {pair.module: pair for pair in plain}
        self.pairs |= {pair.parameter: pair for pair in self.layout.experts}
        self._path = folder / WEIGHTS

    def matrix(self, name: str) -> Matrix:
        """A tensor's numbers where they lie in the file; of bfloat16, the bits."""
        tensor: Tensor = self.header.tensors[name]
        return np.memmap(self._path, _DTYPES[tensor.dtype], "r", tensor.start, tensor.shape)

    def is_bfloat(self, name: str) -> bool:
        return self.header.tensors[name].dtype == "BF16"

    def inner(self, pair: Pair, start: int, stop: int) -> Matrix:
        """A of each lot, [lots, rank, stop - start]: its columns from `start` on, in float64."""
        if isinstance(pair, LoraPair):
            return self._numbers(pair.a, (slice(None), slice(start, stop)))[None]
        parts = [self._numbers(name, (slice(None), slice(start, stop))) for name in pair.a]
        return np.concatenate(parts).reshape(pair.experts, pair.rank, stop - start)

    def outer(self, pair: Pair, start: int, stop: int) -> Matrix:
        """B of each lot transposed, [lots, rank, stop - start]: its rows from `start` on, in float64."""
        if isinstance(pair, LoraPair):
            return self._numbers(pair.b, slice(start, stop)).T[None]
        if not pair.parts:
            columns = self._numbers(pair.b[0], slice(start, stop)).reshape(stop - start, pair.rank, pair.experts)
            return columns.transpose(2, 1, 0)
        made = np.zeros((pair.experts, pair.parts, pair.rank // pair.parts, stop - start))
        height = pair.outputs // pair.parts
        for at, name in enumerate(pair.b):
            expert, part = divmod(at, pair.parts)
            first, last = max(start, part * height), min(stop, (part + 1) * height)
            if first < last:
                rows = self._numbers(name, slice(first - part * height, last - part * height))
                made[expert, part, :, first - start : last - start] = rows.T
        return made.reshape(pair.experts, pair.rank, stop - start)

    def _numbers(self, name: str, where: Any) -> Matrix:
        """A part of a tensor in float64."""
        return _float64(self.matrix(name)[where], self.is_bfloat(name))

    def beside(self, module: str) -> Iterator[str]:
        """What the adapter does to the module besides adding D."""
        pair = self.pairs.get(module)
        if isinstance(pair, LoraPair) and pair.magnitude:
            yield "dora"
        if isinstance(pair, LoraPair) and pair.bias:
            yield "bias"
        yield from (each.parameter for each in self.layout.replaced if each.module == module)
        yield from ("tokens" for each in self.layout.rows if each.module == module)


Side = tuple[Adapter, Pair]


def compare(first: Adapter, second: Adapter) -> Comparison:
    """How two adapters of one base differ. Takes memory for a few slices, and time like one step over both."""
    layouts = (first.layout, second.layout)
    replaced = dict.fromkeys(each.module for layout in layouts for each in layout.replaced)
    tokens = dict.fromkeys(each.module for layout in layouts for each in layout.rows)
    names = dict.fromkeys((*first.pairs, *second.pairs, *replaced, *tokens))
    modules = tuple(_module(first, second, name) for name in names)
    norms = tuple(math.hypot(*(module.norms[which] or 0.0 for module in modules)) for which in (0, 1))
    return Comparison(
        _fields(first.config, second.config),
        modules,
        (norms[0], norms[1]),
        math.hypot(*(module.difference for module in modules)),
    )


def _module(first: Adapter, second: Adapter, name: str) -> Module:
    sides = [(one, one.pairs[name]) if name in one.pairs else None for one in (first, second)]
    products = _products(sides)
    squares = (products[0, 0], products[1, 1])
    square = squares[0] + squares[1] - 2 * products[0, 1]
    return Module(
        name,
        _two(side and side[1].rank for side in sides),
        _two(None if side is None else math.sqrt(max(0.0, squares[at])) for at, side in enumerate(sides)),
        math.sqrt(square) if square > NOISE**2 * sum(squares) else 0.0,
        tuple(sorted({*first.beside(name), *second.beside(name)})),
    )


def _products(sides: list[Side | None]) -> Matrix:
    """[2, 2]: the inner products of the two changes of one module, each with itself and with the other."""
    ranks = [side[1].rank if side else 0 for side in sides]
    scales = np.repeat([side[1].scale if side else 0.0 for side in sides], ranks)
    present = [side for side in sides if side]
    inner = _gram([(adapter.inner, pair) for adapter, pair in present], present[0][1].inputs) if present else 0.0
    outer = _gram([(adapter.outer, pair) for adapter, pair in present], present[0][1].outputs) if present else 0.0
    weighed = np.sum(inner * outer, axis=0) * np.outer(scales, scales)
    cut = ranks[0]
    blocks = [[weighed[:cut, :cut], weighed[:cut, cut:]], [weighed[cut:, :cut], weighed[cut:, cut:]]]
    return np.array([[block.sum() for block in row] for row in blocks])


def _gram(factors: list[tuple[Callable[[Pair, int, int], Matrix], Pair]], width: int) -> Matrix:
    """All factors [lots, rank, width] stacked by rank, times that transposed: [lots, ranks, ranks] in float64."""
    ranks, lots = sum(pair.rank for _, pair in factors), _lots(factors[0][1])
    gram = np.zeros((lots, ranks, ranks))
    step = max(1, SLICE // (8 * ranks * lots))
    for start in range(0, width, step):
        stacked = np.concatenate([read(pair, start, min(start + step, width)) for read, pair in factors], axis=1)
        gram += stacked @ stacked.transpose(0, 2, 1)
    return gram


def _lots(pair: Pair) -> int:
    return pair.experts if isinstance(pair, ExpertPairs) else 1


def _float64(part: Matrix, bits: bool) -> Matrix:
    if bits:
        part = (part.astype("<u4") << 16).view("<f4")
    return np.ascontiguousarray(part, np.float64)


def _fields(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields whose values differ; one that a config lacks is None, as PEFT reads it."""
    names = sorted({*first, *second})
    pairs = {name: (first.get(name), second.get(name)) for name in names}
    return {printable(name): _two(map(_shown, pair)) for name, pair in pairs.items() if pair[0] != pair[1]}


def _shown(value: Any) -> Any:
    """A value small enough to be sent, as it is; a large one as the beginning and the end of its text."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number that JSON can't say, such as 1e999
        return printable(str(value), SHOWN)
    return value if len(text) <= SHOWN and text.isprintable() else printable(text, SHOWN)


def _two(values: Any) -> tuple[Any, Any]:
    one, other = values
    return one, other
