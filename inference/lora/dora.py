"""Knows the norms that DoRA divides its magnitudes by (arXiv 2402.09353, section 4.3); never files or slots.

In PEFT's words `get_weight_norm` (tuners/lora/dora.py). Computed in float32, block by block, so that no second copy of
a weight is ever made.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from adapters.manifest import Turn

BLOCK = 1024  # rows of a weight at a time


def linear_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float, turn: Turn = nullcontext) -> Tensor:
    """`||weight + scale * b @ a||` of each row: weight [out, in], a [rank, in], b [out, rank]; float32 [out].

    Each block within a `turn()`.
    """
    norms = []
    for rows, part in zip(torch.split(weight, BLOCK), torch.split(b, BLOCK), strict=True):
        with turn():
            norms.append(torch.linalg.norm(rows.float() + scale * (part @ a), dim=1))
    return torch.cat(norms)


def embedding_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float, turn: Turn = nullcontext) -> Tensor:
    """`||weight + scale * a @ b.T||` of each column: weight [rows, width], a [rows, rank], b [width, rank]; [width].

    Each block within a `turn()`.
    """
    squares = torch.zeros(b.shape[0], dtype=torch.float64, device=weight.device)
    for rows, part in zip(torch.split(weight, BLOCK), torch.split(a, BLOCK), strict=True):
        with turn():
            squares += (rows.float() + scale * (part @ b.T)).double().square().sum(dim=0)
    return squares.sqrt().float()
