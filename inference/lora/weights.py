"""Knows how an adapter's files become tensors on the device; never slots, requests or where the files came from.

All that depends on the base's own weights (DoRA's norms, what a trained bias differs by) is computed here, in the
loader's thread, so that a step only multiplies and adds.
"""

import math
import mmap
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from adapters.base import BaseSpec
from adapters.header import read_header
from adapters.limits import DEFAULT
from adapters.manifest import Turn
from adapters.peft import ExpertPairs, Layout, LoraPair, layout, read_config
from adapters.stacks import joined
from inference.lora import dora

ALIGNMENT = 64  # bytes; a cache line
CHUNK = 1 << 20  # bytes that are copied in one turn

Pair = tuple[Tensor, Tensor, float]


class TooLarge(Exception):
    """An adapter of `size` bytes, where `place` holds `limit`."""

    def __init__(self, size: int, place: str, limit: float) -> None:
        super().__init__(f"it takes {size / 2**20:.1f} MiB, and {place} holds {limit / 2**20:.1f} MiB")


@dataclass(frozen=True, eq=False)
class Correction:
    """What a slot's rows do to a module's own output y before the pair is added: `y = y * factor + shift`, each [out].

    `weight`, the module's own if None: y is computed with it instead, and without bias. Of the weight the rows with the
    `numbers` [n] are those of `tokens` [n, width]; such a linear has no bias.
    """

    weight: Tensor | None = None
    factor: Tensor | None = None
    shift: Tensor | None = None
    numbers: Tensor | None = None
    tokens: Tensor | None = None

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return (self.weight, self.factor, self.shift, self.numbers, self.tokens)

    @property
    def empty(self) -> bool:
        return all(part is None for part in self._parts)

    def map(self, convert: Callable[[Tensor], Tensor]) -> "Correction":
        return Correction(*(None if part is None else convert(part) for part in self._parts))


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """An adapter by module path; all tensors are views into one buffer of `nbytes`, or into the device's arena.

    pairs        of linears: A [rank, in], B [out, rank] and the scale
    embeddings   of embeddings: A transposed [rows, rank], B [width, rank] and the scale
    corrections  of linears and embeddings
    experts      of parameters of a mixture's experts: A [experts, rank, in], B [experts, out, rank] and the scale
    parameters   of other modules (norms, routers): what replaces their own, by name
    buffer       what the tensors are views of, uint8, where they are packed; starts: at which bytes, rising
    """

    pairs: Mapping[str, Pair]
    nbytes: int
    embeddings: Mapping[str, Pair] = field(default_factory=dict)
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    parameters: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    experts: Mapping[str, Pair] = field(default_factory=dict)
    buffer: Tensor | None = None
    starts: tuple[int, ...] = ()

    def map(self, convert: Callable[[Tensor], Tensor]) -> "AdapterWeights":
        """The same with every tensor converted, in no buffer that it knows of."""

        def pairs(old: Mapping[str, Pair]) -> dict[str, Pair]:
            return {module: (convert(a), convert(b), scale) for module, (a, b, scale) in old.items()}

        return AdapterWeights(
            pairs(self.pairs),
            self.nbytes,
            pairs(self.embeddings),
            {module: correction.map(convert) for module, correction in self.corrections.items()},
            {module: {name: convert(p) for name, p in own.items()} for module, own in self.parameters.items()},
            pairs(self.experts),
        )


class Folder(Protocol):
    """Files by name: a Path, or what knows where each of them lies."""

    def __truediv__(self, name: str, /) -> Path: ...


def read(
    folder: Folder,
    base: BaseSpec,
    device: torch.device,
    frozen: Mapping[str, Tensor],
    *,
    pinned: bool = False,
    largest: float = math.inf,
    turn: Turn = nullcontext,
) -> AdapterWeights:
    """An adapter's tensors, packed; pairs in their own dtype, what replaces the base's in the base's.

    `frozen`: the base's parameters by name, on whatever device, every linear's weight as [out, in]. `pinned`: into
    page-locked memory, which CUDA reads by itself. Whatever takes long is done bit by bit, each within a `turn()`.
    Raises Rejected if the files don't fit the base, TooLarge before it takes more than `largest` bytes.
    """
    file = folder / "adapter_model.safetensors"
    plan = layout(read_config(folder / "adapter_config.json"), read_header(file, DEFAULT.within(base)), base)
    with safe_open(file, framework="pt") as tensors, torch.inference_mode():
        return _packed(_Reader(tensors.get_tensor, frozen, turn).read(plan, base), device, pinned, largest, turn)


class _Reader:
    """Makes the tensors of one adapter, loose."""

    def __init__(self, tensor: Callable[[str], Tensor], frozen: Mapping[str, Tensor], turn: Turn) -> None:
        self._tensor = tensor
        self._frozen = frozen
        self._turn = turn

    def read(self, plan: Layout, base: BaseSpec) -> AdapterWeights:
        changed = self._changed(plan, base)
        pairs: dict[str, Pair] = {}
        embeddings: dict[str, Pair] = {}
        corrections: dict[str, Correction] = {}
        for pair in plan.linears:
            own = changed.pop(pair.module, {})
            pairs[pair.module], corrections[pair.module] = self._linear(pair, own)
        for pair in plan.embeddings:
            own = changed.pop(pair.module, {})
            embeddings[pair.module], corrections[pair.module] = self._embedding(pair, own)
        for module in [module for module in changed if module in base.linears or module in base.embeddings]:
            own = changed.pop(module)
            corrections[module] = Correction(own.get("weight"), None, self._shift(module, own))
        for module, (numbers, tokens) in self._tokens(plan).items():
            corrections[module] = replace(corrections.get(module, Correction()), numbers=numbers, tokens=tokens)
        kept = {module: correction for module, correction in corrections.items() if not correction.empty}
        changed |= {pair.module: {"weight": self._router(pair)} for pair in plan.routers}
        experts = {stack.parameter: self._experts(stack) for stack in plan.experts}
        return AdapterWeights(pairs, 0, embeddings, kept, changed, experts)

    def _changed(self, plan: Layout, base: BaseSpec) -> dict[str, dict[str, Tensor]]:
        """By module and name, the parameters that the adapter replaces by others than the base has."""
        read: dict[str, Tensor] = {}
        changed: dict[str, dict[str, Tensor]] = {}
        for each in plan.replaced:
            own = self._frozen[f"{each.module}.{each.parameter}"]
            turned = each.parameter == "weight" and each.module in base.transposed
            with self._turn():
                stored = self._tensor(each.tensor)
                new = read.setdefault(each.tensor, (stored.T if turned else stored).to(own))
                same = torch.equal(new, own)
            if not same:
                changed.setdefault(each.module, {})[each.parameter] = new
        return changed

    def _tokens(self, plan: Layout) -> dict[str, tuple[Tensor, Tensor]]:
        """By module the numbers of the rows that are retrained, and the rows in the base's dtype."""
        read: dict[str, tuple[Tensor, Tensor]] = {}
        for each in plan.rows:
            own = self._frozen[f"{each.module}.weight"]
            read.setdefault(each.tensor, (torch.tensor(each.numbers), self._tensor(each.tensor).to(own.dtype)))
        return {each.module: read[each.tensor] for each in plan.rows}

    def _linear(self, pair: LoraPair, own: Mapping[str, Tensor]) -> tuple[Pair, Correction]:
        a, b = _alike(self._tensor(pair.a), self._tensor(pair.b))
        weight = own.get("weight")
        factor = None
        if pair.magnitude:
            base = self._frozen[f"{pair.module}.weight"] if weight is None else weight
            a, b = a.to(base.device, torch.float32), b.to(base.device, torch.float32)
            factor = self._tensor(pair.magnitude).to(b) / dora.linear_norms(base, a, b, pair.scale, self._turn)
            b = factor[:, None] * b
        extra = pair.scale * self._tensor(pair.bias).float() if pair.bias else None
        return (a, b, pair.scale), Correction(weight, factor, self._shift(pair.module, own, factor, extra))

    def _embedding(self, pair: LoraPair, own: Mapping[str, Tensor]) -> tuple[Pair, Correction]:
        a, b = _alike(self._tensor(pair.a).T, self._tensor(pair.b))
        weight = own.get("weight")
        factor = None
        if pair.magnitude:
            base = self._frozen[f"{pair.module}.weight"] if weight is None else weight
            a, b = a.to(base.device, torch.float32), b.to(base.device, torch.float32)
            factor = self._tensor(pair.magnitude).to(b) / dora.embedding_norms(base, a, b, pair.scale, self._turn)
            b = factor[:, None] * b
        return (a, b, pair.scale), Correction(weight, factor)

    def _router(self, pair: LoraPair) -> Tensor:
        """The whole weight, which is small: what it is for decides between experts, and is wanted to the last bit."""
        own = self._frozen[f"{pair.module}.weight"]
        a, b = (self._tensor(name).to(own.device, torch.float32) for name in (pair.a, pair.b))
        return (own + (pair.scale * (b @ a)).to(own.dtype)).contiguous()

    def _experts(self, stack: ExpertPairs) -> Pair:
        """Views where the file has all experts in one tensor; `_packed` lays them out."""
        with self._turn():
            a, b = ([self._tensor(name) for name in names] for names in (stack.a, stack.b))
            return (*_alike(*joined(stack.parts, stack.experts, a, b)), stack.scale)

    def _shift(
        self, module: str, own: Mapping[str, Tensor], factor: Tensor | None = None, extra: Tensor | None = None
    ) -> Tensor | None:
        """What is missing of the bias after y (with the base's bias, unless the weight is replaced) times factor."""
        base = self._frozen.get(f"{module}.bias")
        due = own.get("bias", base)
        if due is not None and ("weight" in own or "bias" in own or factor is not None):
            assert base is not None
            has = torch.zeros_like(base) if "weight" in own else base
            missing = due.float() - (has.float() if factor is None else has.float() * factor)
            return missing if extra is None else missing + extra.to(missing)
        return extra


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """In one dtype that holds both exactly: the kernels read a pair as one."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _packed(loose: AdapterWeights, device: torch.device, pinned: bool, largest: float, turn: Turn) -> AdapterWeights:
    """The same with every tensor a view into one new buffer on the device; one that occurs twice is there once."""
    places: dict[int, tuple[int, Tensor]] = {}
    end = 0

    def reserve(tensor: Tensor) -> Tensor:
        nonlocal end
        if id(tensor) not in places:
            places[id(tensor)] = (end, tensor)
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return tensor

    def view(buffer: Tensor, tensor: Tensor) -> Tensor:
        start, _ = places[id(tensor)]
        return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    loose.map(reserve)
    if end > largest:
        raise TooLarge(end, "device memory", largest)
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=True) if pinned else _buffer(end)
    flat = buffer.numpy()
    for start, tensor in places.values():
        with turn():
            raw = _bytes(tensor)
        copy(flat[start : start + tensor.nbytes], raw, turn)
    there = buffer.to(device)
    starts = tuple(start for start, _ in places.values())
    return replace(loose.map(lambda tensor: view(there, tensor)), nbytes=end, buffer=there, starts=starts)


def _bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Copied by numpy, which takes neither the interpreter's lock nor the cores that steps run on, as torch would."""
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()


def copy(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any], turn: Turn) -> None:
    """In chunks, each within a `turn()` and without the interpreter's lock."""
    for begin in range(0, len(source), CHUNK):
        part = source[begin : begin + CHUNK]
        with turn():
            np.copyto(target[begin : begin + len(part)], part)


def virtual(size: int) -> mmap.mmap:
    """Memory that is taken when it is written, in huge pages where the system has them, and goes back when it is freed:
    what malloc once took it may keep."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _buffer(size: int) -> Tensor:
    return torch.frombuffer(virtual(size), dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
