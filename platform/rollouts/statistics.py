"""Knows tests and their levels, for counts. Knows nothing of what is counted.

The looks. A look is due when `FIRST * GROWTH ** j` samples have come, so their number is the logarithm of the samples',
no horizon need be known, and it does not matter how often a clock asks. Look j has spent `alpha * j / (j + PACE)`
(Lan and DeMets 1983, on that scale): about evenly at first, and never all. A test statistic at looks whose information
grows by GROWTH is an autoregression with coefficient GROWTH ** -0.5, so what each look may spend becomes its level by
the recursion of Armitage, McPherson and Rowe (1969).

The test of two shares is the signed root of the likelihood ratio with Yates' correction, under the null hypothesis
that the canary's share exceeds stable's by just the margin (as Farrington and Manning 1990 have it for the score). The
score's p is far too small in the tails that looks and many guardrails need, where arms are unequal and events are rare:
five errors in 100 requests, where 1 % is usual, have p = 0.003; by the score 0.00003.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

Floats = NDArray[np.float64]
Counts = NDArray[np.float64] | NDArray[np.int64]

FIRST = 20
GROWTH = 1.25
PACE = 10
LOOKS = 80  # by then a billion samples
GROUPS = 8  # with fewer, the spread between them says too little


class Share(NamedTuple):
    """`hits` of `total`; both may be fractions, where samples count for less than one."""

    hits: float
    total: float

    @property
    def value(self) -> float:
        return self.hits / self.total

    def worth(self, samples: float) -> "Share":
        """The same, where so many samples are worth one."""
        return Share(self.hits / samples, self.total / samples)


def looks_due(samples: int) -> int:
    """How many looks so many samples have earned."""
    if samples < FIRST:
        return 0
    return min(1 + math.floor(math.log(samples / FIRST) / math.log(GROWTH) + 1e-9), LOOKS)


def level(alpha: float, look: int) -> float:
    """The p at or below which the look, counted from 1, rejects; so that all looks together reject by `alpha`."""
    return _levels(alpha)[look - 1]


@cache
def _levels(alpha: float) -> tuple[float, ...]:
    points, mass = _span(-LEAST)
    density = np.exp(-(points**2) / 2) / ROOT
    levels = []
    for look in range(1, LOOKS + 1):
        held = density * mass
        spend = alpha * (look / (look + PACE) - (look - 1) / (look - 1 + PACE))
        bound = _bound(points, held, spend)
        levels.append(upper_tail(bound))
        earlier, (points, mass) = points, _span(bound)
        density = np.exp(-(((points[:, None] - KEPT * earlier) / NOISE) ** 2) / 2) @ held / (NOISE * ROOT)
    return tuple(levels)


LEAST = -8.0  # below which a path is as good as lost
KEPT = GROWTH**-0.5
NOISE = math.sqrt(1 - KEPT**2)
ROOT = math.sqrt(2 * math.pi)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)


def _span(bound: float) -> tuple[Floats, Floats]:
    """Gauss-Legendre points and weights between LEAST and the bound."""
    half = (bound - LEAST) / 2
    return LEAST + half * (NODES + 1), half * WEIGHTS


def _bound(points: Floats, held: Floats, spend: float) -> float:
    """What the next step of the autoregression crosses with probability `spend`."""
    low, high = 0.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        crossing = float(held @ ndtr((KEPT * points - middle) / NOISE))
        low, high = (middle, high) if crossing > spend else (low, middle)
    return high


def upper_tail(z: float, freedom: float = math.inf) -> float:
    """Of the normal distribution, or of Student's."""
    return 0.5 * math.erfc(z / math.sqrt(2)) if math.isinf(freedom) else float(stdtr(freedom, -z))


def student(p: float, freedom: float) -> float:
    """The quantile of Student's distribution."""
    return float(stdtrit(freedom, p))


def excess(canary: Share, stable: Share, margin: float = 0.0, freedom: float = math.inf) -> float:
    """p, one-sided, of "the canary's share is at most stable's plus the margin"; 1 where it looks so, or none is known.

    A negative margin asks whether the canary's is lower by that much. freedom: of the samples' design effect.
    """
    if canary.total <= 0 or stable.total <= 0:
        return 1.0
    canary = Share(max(canary.hits - 0.5, 0.0), canary.total)
    stable = Share(min(stable.hits + 0.5, stable.total), stable.total)
    if canary.value - stable.value <= margin:
        return 1.0
    null = _restricted(canary, stable, margin)
    ratio = _log_likelihood(canary, canary.value) - _log_likelihood(canary, null + margin)
    ratio += _log_likelihood(stable, stable.value) - _log_likelihood(stable, null)
    return upper_tail(math.sqrt(max(2 * ratio, 0.0)), freedom)


def _restricted(canary: Share, stable: Share, margin: float) -> float:
    """Stable's share that is likeliest if the canary's were larger by just the margin."""
    low, high = max(0.0, -margin), min(1.0, 1.0 - margin)
    for _ in range(40):
        middle = (low + high) / 2
        slope = _slope(stable, middle) + _slope(canary, middle + margin)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return (low + high) / 2


def _slope(share: Share, p: float) -> float:
    return share.hits / p - (share.total - share.hits) / (1 - p)


def _log_likelihood(share: Share, p: float) -> float:
    misses = share.total - share.hits
    return (share.hits * math.log(p) if share.hits else 0.0) + (misses * math.log1p(-p) if misses else 0.0)


def imbalance(count: int, total: int, expected: float) -> float:
    """p, two-sided, of `count` of `total` where each falls there with probability `expected`, strictly between 0, 1."""
    apart = max(abs(count - total * expected) - 0.5, 0.0)
    if not apart:
        return 1.0
    found = Share(total * expected + math.copysign(apart, count - total * expected), total)
    ratio = _log_likelihood(found, found.value) - _log_likelihood(found, expected)
    return min(2 * upper_tail(math.sqrt(max(2 * ratio, 0.0))), 1.0)


class Effect(NamedTuple):
    """How many samples are worth one, at least 1, and the degrees of freedom that this leaves."""

    samples: float = 1.0
    freedom: float = math.inf


def design_effect(hits: Counts, totals: Counts) -> Effect:
    """The variance of the share between groups over the binomial one; hits, totals: of each group.

    One means independent samples; ten, that units send about ten each that agree. As far as the variance is estimated
    and not binomial, its freedom is the groups' (Satterthwaite). Few groups count as one sample each.
    """
    used, total = int(np.count_nonzero(totals)), float(totals.sum())
    share = float(hits.sum()) / total if total else 0.0
    if used < GROUPS:
        return Effect(max(total / max(used, 1), 1.0))
    if not 0 < share < 1:
        return Effect()
    between = float(np.square(hits - share * totals).sum()) * used / (used - 1)
    effect = between / (total * share * (1 - share))
    return Effect(effect, (used - 1) * (effect / (effect - 1)) ** 2) if effect > 1 else Effect()


def beyond(bins: Counts, edge: float) -> Floats:
    """How much of [..., bins] lies above the edge, which is a place in bins; within a bin samples lie evenly."""
    whole = min(max(math.floor(edge), 0), bins.shape[-1])
    above = bins[..., whole:].sum(-1)
    return np.asarray(above - (edge - whole) * bins[..., whole] if edge > whole and whole < bins.shape[-1] else above)


def threshold(low: Counts, high: Counts, quantile: float, shift: int) -> float:
    """The edge with 1 - quantile of both above it, those of `low` moved up by `shift` bins.

    It is a place within a bin, so a bin that holds many, or all of an arm, is parted in the same ratio for both arms.
    """
    edges = np.arange(low.shape[-1] + 1)
    above = np.interp(edges - shift, edges, _above(low)) + _above(high)
    return float(np.interp((1 - quantile) * above[0], above[::-1], edges[::-1]))


def _above(bins: Counts) -> Floats:
    """At each edge: how many lie above it."""
    return np.append(np.cumsum(bins[::-1])[::-1], 0)


def quantile_of(histogram: Counts, quantile: float) -> int:
    """The bin that holds the quantile of a histogram with samples."""
    return int(np.searchsorted(np.cumsum(histogram), quantile * histogram.sum()))
