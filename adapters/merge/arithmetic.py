"""Knows what several adapters' pairs on one module become together; never configs or files.

PEFT 0.21's `add_weighted_adapter` (tuners/lora/model.py, utils/merge_utils.py) is the reference: tensors and weights
give the same result here, for DARE under the same seed. A pair (A [rank, in], B [out, rank]) stands for
scale * B @ A; the pair that comes out has the scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from torch import Generator, Tensor

Method = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties"]
SignElection = Literal["total", "frequency"]

SPARSE: Final = frozenset({"ties", "dare_linear", "dare_ties"})
"""Methods that keep a part (`density`) of each tensor's elements."""

SAME_RANK: Final = frozenset({"linear"}) | SPARSE
"""Methods that add A to A and B to B, which takes pairs of one rank."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """One adapter's pair, in float32. `weight`: what the caller gave it times the pair's own scale."""

    a: Tensor
    b: Tensor
    weight: float


@dataclass(frozen=True)
class Recipe:
    """How pairs are combined. `rank`: of the result, for svd alone."""

    method: Method
    density: float = 1.0
    rank: int = 0
    sign: SignElection = "total"


def combine(pairs: Sequence[Weighted], recipe: Recipe, random: Generator) -> tuple[Tensor, Tensor]:
    """A and B of the combination of one module's pairs. DARE draws from `random`: A's masks first, then B's."""
    if recipe.method == "cat":
        return _concatenated(pairs)
    if recipe.method == "svd":
        return _decomposed(pairs, recipe.rank)
    sides = [pair.a for pair in pairs], [pair.b for pair in pairs]
    roots = [math.sqrt(abs(pair.weight)) for pair in pairs]
    signed = [math.copysign(root, pair.weight) for root, pair in zip(roots, pairs, strict=True)]
    a = _added(sides[0], signed, recipe, random)
    return a, _added(sides[1], roots, recipe, random)


def _concatenated(pairs: Sequence[Weighted]) -> tuple[Tensor, Tensor]:
    """Exact; the rank is the sum of the ranks."""
    import torch

    return torch.cat([pair.a * pair.weight for pair in pairs]), torch.cat([pair.b for pair in pairs], dim=1)


def _decomposed(pairs: Sequence[Weighted], rank: int) -> tuple[Tensor, Tensor]:
    """The nearest pair of `rank` to the weighted sum of all B @ A, by the singular values of the sum.

    The sum has no more rank than its pairs together, so its factors' triangles are decomposed instead of itself.
    """
    import torch

    wide, tall = _concatenated(pairs)
    left, upper = torch.linalg.qr(tall)
    right, lower = torch.linalg.qr(wide.T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    kept = min(rank, len(values))
    a, b = (right @ v[:kept].T).T, left @ (u[:, :kept] * values[:kept])
    missing = rank - kept
    pad = torch.nn.functional.pad
    return pad(a, (0, 0, 0, missing)).contiguous(), pad(b, (0, missing)).contiguous()


def _added(tensors: Sequence[Tensor], weights: Sequence[float], recipe: Recipe, random: Generator) -> Tensor:
    import torch

    if recipe.method == "ties":
        tensors = [_largest(tensor, recipe.density) for tensor in tensors]
    elif recipe.method in SPARSE:
        tensors = [_drawn(tensor, recipe.density, random) for tensor in tensors]
    stack = torch.stack(list(tensors))
    weighted = stack * torch.tensor(weights).view(-1, *[1] * tensors[0].dim())
    if recipe.method in ("ties", "dare_ties"):
        agreeing = _agreeing(stack, recipe.sign)
        return (weighted * agreeing).sum(0) / agreeing.sum(0).clamp(min=1.0)
    return weighted.sum(0)


def _largest(tensor: Tensor, density: float) -> Tensor:
    """The part `density` of the elements that is largest in magnitude; zero elsewhere."""
    import torch

    if density >= 1:
        return tensor
    places = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
    kept = torch.zeros(tensor.numel(), dtype=torch.bool)
    kept[places] = True
    return tensor * kept.view(tensor.shape)


def _drawn(tensor: Tensor, density: float, random: Generator) -> Tensor:
    """Each element with the probability `density`, then over it, so that the expected value stays."""
    import torch

    if density >= 1:
        return tensor
    return tensor * torch.bernoulli(torch.full_like(tensor, density), generator=random) / density


def _agreeing(stack: Tensor, election: SignElection) -> Tensor:
    """Where each tensor has the sign that most have: by their sum, or by their number."""
    import torch

    signs = stack.sign()
    votes = (stack if election == "total" else signs).sum(0)
    return signs == torch.where(votes >= 0, 1, -1)
