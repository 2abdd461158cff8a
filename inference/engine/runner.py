"""Knows how a plan becomes tensors and tensors become tokens; never why these rows run."""

import torch

from inference.engine.sampler import sample
from inference.engine.scheduler import Plan, Sampled
from inference.kernels.attention import Layout
from inference.kernels.sgmm import Segments
from inference.models.load import Model


class Runner:
    """`blocks` blocks of `size` tokens are allocated for the model's cache."""

    def __init__(self, model: Model, blocks: int, size: int) -> None:
        self._model = model
        self._size = size
        model.cache.allocate(blocks, size, model.dtype, model.device)

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[Sampled | None]:
        """One forward pass over the plan's tokens; a token for every row that samples, None for the others."""
        rows, device = plan.rows, self._model.device
        counts = [row.count for row in rows]
        self._model.cache.layout = Layout.of(
            counts, [row.start + row.count for row in rows], [row.sequence.blocks for row in rows], self._size, device
        )
        self._model.sites.batch.segments = Segments.of([row.sequence.slot for row in rows], counts)
        tokens = [token for row in rows for token in row.sequence.tokens[row.start : row.start + row.count]]
        positions = [position for row in rows for position in range(row.start, row.start + row.count)]
        samplers = [row for row in rows if row.samples]
        self._model.sites.head.segments = Segments.of([row.sequence.slot for row in samplers], [1] * len(samplers))
        ends = torch.tensor(counts).cumsum(0) - 1
        logits = self._model.logits(
            torch.tensor(tokens, device=device),
            torch.tensor(positions, device=device),
            ends[torch.tensor([row.samples for row in rows])].to(device),
        )
        drawn = iter(sample(logits, [row.sequence for row in samplers]) if samplers else ())
        return [next(drawn) if row.samples else None for row in rows]
