"""Knows how logits become tokens; never where they came from.

All rows of a step are drawn together. Each sequence draws from its own random stream, so a seeded request gets the same
tokens whatever shares its batch. Reading the tokens is where a step waits for a GPU, and the only place unless somebody
asked for log-probabilities.
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from inference.client import Sampling
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
        _penalise(logits[row], sequences[row])
    return logits


def _asks(sequence: Sequence) -> bool:
    early = sequence.generated < sequence.sampling.min_tokens
    return bool(_penalised(sequence.sampling) or sequence.bad_words or early)


def _penalised(sampling: Sampling) -> bool:
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1)


def _bar(logits: Tensor, sequence: Sequence) -> None:
    barred = [token for token in sequence.barred if token < logits.shape[-1]]
    if barred:
        logits[put(np.array(barred), logits.device)] = -torch.inf


class Said:
    """Which tokens a sequence has, and how often each of its answer: what is new is taken in when it is sampled.

    It stays with the sequence (`Sequence.said`) while that runs, so that no step looks at all of its tokens again.
    """

    def __init__(self, logits: Tensor) -> None:
        self.ever = torch.zeros_like(logits, dtype=torch.bool)
        self.times = torch.zeros_like(logits)
        self._taken = 0

    @classmethod
    def of(cls, sequence: Sequence, logits: Tensor) -> "Said":
        said = sequence.said
        if not isinstance(said, cls):
            sequence.said = said = cls(logits)
        said._take_in(sequence)
        return said

    def _take_in(self, sequence: Sequence) -> None:
        answer = max(self._taken, len(sequence.prompt))
        new, told = sequence.tokens[self._taken :], sequence.tokens[answer:]
        self._taken = len(sequence.tokens)
        if new:
            self.ever[put(np.array(new), self.ever.device)] = True
        if told:
            at = put(np.array(told), self.times.device)
            self.times.index_add_(0, at, torch.ones_like(at, dtype=self.times.dtype))


def _penalise(logits: Tensor, sequence: Sequence) -> None:
    """Repetition as Keskar et al. (CTRL, 2019) do; OpenAI's presence and frequency penalties, over the answer."""
    sampling = sequence.sampling
    if not _penalised(sampling):
        return
    said = Said.of(sequence, logits)
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        logits.copy_(torch.where(said.ever, torch.where(logits > 0, logits / penalty, logits * penalty), logits))
    less = sampling.presence_penalty + sampling.frequency_penalty * said.times
    logits -= torch.where(said.times > 0, less, 0.0)


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
