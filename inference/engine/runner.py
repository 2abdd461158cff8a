"""Knows how a plan becomes tensors and tensors become tokens; never why these rows run."""

import logging
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from inference.engine.graphs import Graphs, Record, on_cuda
from inference.engine.sampler import sample
from inference.engine.scheduler import Plan, Row, Sampled
from inference.kernels.attention import Layout
from inference.kernels.gpu.pinned import put
from inference.kernels.operands import Segments
from inference.models.load import Model

log = logging.getLogger(__name__)


class Runner:
    """`blocks` blocks of `size` tokens are allocated for the model's cache. Without `graphs` all steps run eagerly."""

    def __init__(self, model: Model, blocks: int, size: int) -> None:
        self._model = model
        self._size = size
        self.graphs: Graphs | None = None
        model.cache.allocate(blocks, size, model.dtype, model.device)

    @property
    def replayed(self) -> int:
        """Steps that were replayed; the others ran eagerly."""
        return 0 if self.graphs is None else self.graphs.replayed

    @torch.inference_mode()
    def record(self, rows: int, context: int, record: Record | None = None) -> None:
        """From now on replay decode steps of up to `rows` rows of `context` tokens; before the first step, CUDA only.

        A model that can't be recorded (one that waits for its own numbers, say) runs eagerly, and the log says why.
        """
        if record is None and self._model.device.type != "cuda":
            return
        try:
            with self._model.current():
                self.graphs = Graphs(self._model, rows, context, self._size, record or on_cuda())
        except Exception:
            log.exception("decode steps can't be recorded as CUDA graphs: every step runs eagerly, and slower")

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[Sampled | None]:
        """One forward pass over the plan's tokens; a token for every row that samples, None for the others."""
        samplers = [row for row in plan.rows if row.samples]
        with self._model.current():
            logits = None if self.graphs is None else self.graphs.logits(plan)
            if logits is None:
                logits = self._forward(plan.rows, samplers)
            drawn = iter(sample(logits, [row.sequence for row in samplers]) if samplers else ())
        return [next(drawn) if row.samples else None for row in plan.rows]

    def _forward(self, rows: Seq[Row], samplers: Seq[Row]) -> Tensor:
        """The logits of the rows that sample."""
        model, device = self._model, self._model.device
        counts = [row.count for row in rows]
        contexts = [row.start + row.count for row in rows]
        blocks = [row.sequence.blocks for row in rows]
        model.cache.layout = Layout.of(counts, contexts, blocks, self._size, device)
        model.sites.batch.segments = Segments.of([row.sequence.slot for row in rows], counts)
        model.sites.head.segments = Segments.of([row.sequence.slot for row in samplers], [1] * len(samplers))
        tokens = [token for row in rows for token in row.sequence.tokens[row.start : row.start + row.count]]
        positions = [position for row in rows for position in range(row.start, row.start + row.count)]
        ends = np.cumsum(counts)[[row.samples for row in rows]] - 1
        return model.logits(put(np.array(tokens), device), put(np.array(positions), device), put(ends, device))
