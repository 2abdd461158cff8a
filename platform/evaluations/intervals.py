"""Knows how sure one may be of a mean: Wilson's interval for proportions, Student's for means. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Score:
    """The mean of `n` items, and the interval that holds the true one in 95 of 100 such sets."""

    mean: float
    low: float
    high: float
    n: int


def proportion(passed: int, n: int, confidence: float = CONFIDENCE) -> Score:
    """Wilson, "Probable inference", JASA 22 (1927): holds for few items and for shares near 0 and 1. n >= 1."""
    assert 0 <= passed <= n > 0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = passed / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if passed == 0 else max(0.0, centre - half)
    high = 1.0 if passed == n else min(1.0, centre + half)
    return Score(share, low, high, n)


def mean(values: Sequence[float], confidence: float = CONFIDENCE, *, most: float = math.inf) -> Score:
    """Student's t interval of the mean of two values at least, none of which can be above `most`."""
    from scipy.stats import t  # half a second, for workers only

    n = len(values)
    assert n > 1
    centre = fmean(values)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Score(centre, centre - half, min(most, centre + half), n)
