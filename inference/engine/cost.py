"""Knows what a token costs a step that computes it; never whose token it is, or whose turn."""

from adapters.base import BaseSpec, routed
from inference.lora.weights import AdapterWeights


def token_cost(base: BaseSpec, weights: AdapterWeights) -> float:
    """What one token with this adapter costs a step; one of the base costs 1.

    The multiply-adds of both over those of the base, in x A^T B^T and in x W^T: 1 + sum of rank * (in + out) / sum of
    in * out. With one rank on every linear that is 1 + rank * k, where k follows from the model's shape: 0.0015 for
    Qwen2-0.5B, so 1.02 at rank 16 and 1.39 at rank 256. A retrained weight counts as a whole. Of a mixture's experts
    those count that compute a token. The head is left out, which sees one token of a row, and so are experts that are
    linears of their own.
    """
    linears = {name: shape for name, shape in base.linears.items() if name != base.head and not routed(name)}
    own = sum(a.numel() + b.numel() for name, (a, b, _) in weights.pairs.items() if name in linears)
    own += sum(b.numel() for _, b, _ in weights.embeddings.values())
    for name, (a, b, _) in weights.experts.items():
        own += base.experts[name].active * (a[0].numel() + b[0].numel())
    for name, correction in weights.corrections.items():
        if name in linears and correction.weight is not None:
            own += correction.weight.numel()
    whole = sum(inputs * outputs for outputs, inputs in linears.values())
    whole += sum(each.active * each.inputs * each.outputs for each in base.experts.values())
    return 1.0 + own / max(1, whole)
