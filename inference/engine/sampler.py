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
    adjusted = _adjust(logits, sequences)
    tokens = adjusted.argmax(dim=-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
    if drawn:
        at = put(np.array(drawn), logits.device)
        tokens[at] = _draw(adjusted[at], [sequences[row] for row in drawn])
    told, finite = torch.stack([tokens, torch.isfinite(logits.sum(dim=-1)).long()]).tolist()
    chosen = [
        token if sequence.forced is None else sequence.forced for token, sequence in zip(told, sequences, strict=True)
    ]
    return [
        Sampled(token, _chosen(row_logprobs, token, sequence.sampling.logprobs), bool(is_finite))
        for token, row_logprobs, sequence, is_finite in zip(chosen, logprobs, sequences, finite, strict=True)
    ]


def _adjust(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """As vLLM does: what may not be next is barred; what was said is penalised, in the prompt too for repetition."""
    rows = [row for row, sequence in enumerate(sequences) if _asks(sequence)]
    if not rows:
        return logits
    logits = logits.clone()
    for row in rows:
        _bar(logits[row], sequences[row])
        _penalise_repetition(logits[row], sequences[row])
        _penalise(logits[row], sequences[row])
    return logits


def _asks(sequence: Sequence) -> bool:
    sampling = sequence.sampling
    penalties = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1
    return bool(penalties or sequence.bad_words or sequence.generated < sampling.min_tokens)


def _bar(logits: Tensor, sequence: Sequence) -> None:
    barred = [token for token in sequence.barred if token < logits.shape[-1]]
    if barred:
        logits[put(np.array(barred), logits.device)] = -torch.inf


def _penalise_repetition(logits: Tensor, sequence: Sequence) -> None:
    """Of Keskar et al. (CTRL, 2019)."""
    penalty = sequence.sampling.repetition_penalty
    if penalty != 1:
        at = put(np.unique(np.array(sequence.tokens)), logits.device)
        logits[at] = torch.where(logits[at] > 0, logits[at] / penalty, logits[at] * penalty)


def _penalise(logits: Tensor, sequence: Sequence) -> None:
    """OpenAI's presence and frequency penalties, over what the sequence has generated."""
    sampling = sequence.sampling
    counts = Counter(sequence.output) if sampling.presence_penalty or sampling.frequency_penalty else Counter()
    if counts:
        at = put(np.array(list(counts)), logits.device)
        times = put(np.array(list(counts.values()), np.float32), logits.device)
        logits[at] -= sampling.presence_penalty + sampling.frequency_penalty * times


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
