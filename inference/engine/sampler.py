"""Knows how logits become tokens; never where they came from.

All rows of a step are drawn together. Each sequence draws from its own random stream, so a seeded request gets the same
tokens whatever shares its batch. Reading the tokens is where a step waits for a GPU, and the only place unless somebody
asked for log-probabilities.
"""

from collections import Counter
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from inference.engine.scheduler import Logprobs, Sampled
from inference.engine.sequence import Sequence
from inference.kernels.gpu.pinned import put


def sample(logits: Tensor, sequences: Seq[Sequence]) -> list[Sampled]:
    """logits: [sequences, vocabulary]; one token for each."""
    logits = logits.float()
    logprobs = _logprobs(logits, sequences)
    penalised = _penalise(logits, sequences)
    tokens = penalised.argmax(dim=-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
    if drawn:
        at = put(np.array(drawn), logits.device)
        tokens[at] = _draw(penalised[at], [sequences[row] for row in drawn])
    told, finite = torch.stack([tokens, torch.isfinite(logits.sum(dim=-1)).long()]).tolist()
    chosen = [
        token if sequence.forced is None else sequence.forced for token, sequence in zip(told, sequences, strict=True)
    ]
    return [
        Sampled(token, _chosen(row_logprobs, token, sequence.sampling.logprobs), bool(is_finite))
        for token, row_logprobs, sequence, is_finite in zip(chosen, logprobs, sequences, finite, strict=True)
    ]


def _penalise(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """OpenAI's presence and frequency penalties, over what the sequence has generated."""
    rows = [r for r, s in enumerate(sequences) if s.sampling.presence_penalty or s.sampling.frequency_penalty]
    if not rows:
        return logits
    logits = logits.clone()
    for row in rows:
        counts = Counter(sequences[row].output)
        if counts:
            at = put(np.array(list(counts)), logits.device)
            times = put(np.array(list(counts.values()), np.float32), logits.device)
            sampling = sequences[row].sampling
            logits[row, at] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits


def _draw(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Temperature, then top-k, top-p and min-p, each a prefix of the tokens by falling probability."""

    def column(values: Seq[float]) -> Tensor:
        return put(np.array(values, np.float64), logits.device)[:, None]

    sampling = [sequence.sampling for sequence in sequences]
    vocabulary = logits.shape[-1]
    scaled = logits.double() / column([max(s.temperature, 1e-5) for s in sampling])
    ordered, index = scaled.sort(dim=-1, descending=True, stable=True)
    weights = ordered.softmax(dim=-1)
    mass = weights.cumsum(dim=-1)
    kept = mass - weights < column([s.top_p for s in sampling])
    kept &= weights >= column([s.min_p for s in sampling]) * weights[:, :1]
    kept &= torch.arange(vocabulary, device=logits.device) < column([s.top_k or vocabulary for s in sampling])
    kept[:, 0] = True
    last = kept.sum(dim=-1, keepdim=True) - 1
    point = column([sequence.random.random() for sequence in sequences]) * mass.gather(1, last)
    place = torch.searchsorted(mass, point, right=True).minimum(last)
    return index.gather(1, place)[:, 0]


def _logprobs(logits: Tensor, sequences: Seq[Sequence]) -> list[Tensor | None]:
    """The log-probabilities, before any penalty or temperature, of the rows whose requests asked."""
    wanted = [s.sampling.logprobs is not None for s in sequences]
    return [row.log_softmax(dim=-1) if want else None for row, want in zip(logits, wanted, strict=True)]


def _chosen(logprobs: Tensor | None, token: int, best: int | None) -> Logprobs | None:
    if logprobs is None:
        return None
    values, index = logprobs.topk(min(best or 0, logprobs.shape[-1]))
    top = tuple(zip(index.tolist(), values.tolist(), strict=True))
    return Logprobs((token, logprobs[token].item()), top)
