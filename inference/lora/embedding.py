"""Knows how an embedding adds each row's adapter to its output; never where adapters come from."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.lora.linear import Batch
from inference.lora.replaced import twin
from inference.lora.weights import Correction, Pair


class LoraEmbedding(nn.Module):
    """y = embedding(ids), or of the slot's own weight or rows, `* factor`, `+ scale * A[ids] @ B.T` for each segment.

    ids: [..., rows] in the batch's order. An embedding that scales its output (`embed_scale`) scales LoRA's as well.
    """

    def __init__(self, embedding: nn.Embedding, batch: Batch) -> None:
        super().__init__()
        self.embedding = embedding
        self.batch = batch
        self.pairs: dict[int, Pair] = {}
        self.corrections: dict[int, Correction] = {}
        self._twins: dict[int, nn.Module] = {}

    @property
    def weight(self) -> Tensor:
        return self.embedding.weight

    def correct(self, slot: int, correction: Correction) -> None:
        self.corrections[slot] = correction
        if correction.weight is not None:
            self._twins[slot] = twin(self.embedding, {"weight": correction.weight})

    def clear(self, slot: int) -> None:
        for kept in (self.pairs, self.corrections, self._twins):
            kept.pop(slot, None)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.embedding(ids)
        if self.pairs or self.corrections:
            rows, flat = y.view(-1, y.shape[-1]), ids.reshape(-1)
            for start, end, slot in self.batch.segments:
                self._adapt(rows[start:end], flat[start:end], slot)
        return y

    def _adapt(self, y: Tensor, ids: Tensor, slot: int) -> None:
        if slot in self._twins:
            y.copy_(self._twins[slot](ids))
        correction = self.corrections.get(slot)
        if correction is not None and correction.numbers is not None and correction.tokens is not None:
            chosen = ids[:, None] == correction.numbers
            rows = correction.tokens[chosen.int().argmax(dim=1)] * getattr(self.embedding, "embed_scale", 1.0)
            y.copy_(torch.where(chosen.any(dim=1, keepdim=True), rows.to(y.dtype), y))
        if correction is not None and correction.factor is not None:
            y.mul_(correction.factor)
        if slot in self.pairs:
            a, b, scale = self.pairs[slot]
            y.add_(scale * getattr(self.embedding, "embed_scale", 1.0) * (functional.embedding(ids, a) @ b.T))
