"""Knows how logits become tokens; never where they came from.

All rows of a step are drawn together. Each sequence draws from its own random stream, so a seeded request gets the same
tokens whatever shares its batch.
"""

from collections import Counter
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from inference.engine.scheduler import Logprobs, Sampled
from inference.engine.sequence import Sequence


def sample(logits: Tensor, sequences: Seq[Sequence]) -> list[Sampled]:
    """logits: [sequences, vocabulary]; one token for each."""
    logits = logits.float()
    finite = torch.isfinite(logits.sum(dim=-1)).tolist()
    logprobs = _logprobs(logits, sequences)
    penalised = _penalise(logits, sequences)
    tokens = penalised.argmax(dim=-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0 and finite[row]]
    if drawn:
        tokens[drawn] = _draw(penalised[drawn], [sequences[row] for row in drawn])
    chosen = [
        token if sequence.forced is None else sequence.forced
        for token, sequence in zip(tokens.tolist(), sequences, strict=True)
    ]
    return [
        Sampled(token, _chosen(row_logprobs, token, sequence.sampling.logprobs), is_finite)
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
            at = torch.tensor(list(counts), device=logits.device)
            times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
            sampling = sequences[row].sampling
            logits[row, at] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits


def _draw(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Temperature, then top-k, top-p and min-p, each a prefix of the tokens by falling probability."""

    def column(values: Seq[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

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
