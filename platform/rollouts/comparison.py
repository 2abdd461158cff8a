"""Knows how each metric of two windows is compared: which test, with which margin. Knows no levels and no verdicts."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

from rollouts.guardrails import Direction, Guardrail
from rollouts.statistics import FIRST, Effect, Share, beyond, design_effect, excess, quantile_of, threshold, upper_tail
from rollouts.windows import OCTAVE, Metric, Score, Tally, Window, value_of

QUANTILES = {Metric.FIRST_TOKEN: 0.95, Metric.INTER_TOKEN: 0.95, Metric.LENGTH: 0.5}
NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Comparison:
    """harm: p of "within the margin", None where samples are too few. harmless: p of "beyond it", if asked for."""

    stable: float | None
    canary: float | None
    harm: float | None
    harmless: float | None
    samples: tuple[int, int]


def compare(rail: Guardrail, stable: Window, canary: Window) -> Comparison:
    samples = stable.samples(rail.metric), canary.samples(rail.metric)
    if min(samples) < FIRST:
        return Comparison(None, None, None, None, samples)
    if rail.metric is Metric.EVALUATION:
        return _scores(rail, *(window.score for window in (stable, canary) if window.score))
    low, high = (Grouped.of(window.tally(rail.metric)) for window in (stable, canary))
    return _shares(rail, low, high, samples) if rail.is_share else _quantiles(rail, low, high, samples)


class Grouped(NamedTuple):
    """A tally with its bins, summed over the groups of units."""

    tally: Tally
    bins: Tally

    @classmethod
    def of(cls, tally: Tally) -> Self:
        return cls(tally, tally.sum(0))

    def quantile(self, quantile: float) -> float:
        return value_of(quantile_of(self.bins, quantile))

    def above(self, edge: float) -> "Above":
        return Above(self, edge, Share(float(beyond(self.bins, edge)), float(self.bins.sum())))


class Above(NamedTuple):
    """The share of an arm's samples that lie above an edge."""

    arm: Grouped
    edge: float
    share: Share

    @property
    def effect(self) -> Effect:
        return design_effect(beyond(self.arm.tally, self.edge), self.arm.tally.sum(1))


def _shares(rail: Guardrail, stable: Grouped, canary: Grouped, samples: tuple[int, int]) -> Comparison:
    low, high = stable.above(1), canary.above(1)
    harm = _excess(high, low, rail.margin)
    harmless = _excess(low, high, -rail.margin) if rail.proves else None
    return Comparison(low.share.value, high.share.value, harm, harmless, samples)


def _quantiles(rail: Guardrail, stable: Grouped, canary: Grouped, samples: tuple[int, int]) -> Comparison:
    """A rank test, whose scores are 1 above the quantile of both arms together and 0 below it.

    The arm that should be lower has its values times 1 + margin. Where else the arms differ does not matter.
    """
    quantile = QUANTILES[rail.metric]
    pairs = {Direction.HIGHER: [(stable, canary)], Direction.LOWER: [(canary, stable)]}
    pairs[Direction.BOTH] = pairs[Direction.HIGHER] + pairs[Direction.LOWER]
    found = [_ranks(*pair, quantile, rail) for pair in pairs[rail.direction]]
    harm = min(1.0, len(found) * min(harm for harm, _ in found))
    harmless = max((harmless for _, harmless in found if harmless is not None), default=None)
    return Comparison(stable.quantile(quantile), canary.quantile(quantile), harm, harmless, samples)


def _ranks(low: Grouped, high: Grouped, quantile: float, rail: Guardrail) -> tuple[float, float | None]:
    """harm and harmless, where harm is that `high` exceeds `low` times 1 + margin.

    A margin is taken as whole bins, up for harm and down for harmless, so that where values lie in their bins, which
    nobody knows, can't pass for either.
    """
    shift = OCTAVE * math.log2(1 + rail.margin)
    moved, others = _parted(low, high, quantile, math.ceil(shift))
    harm = _excess(others, moved, 0.0)
    if not rail.proves:
        return harm, None
    moved, others = _parted(low, high, quantile, math.floor(shift))
    return harm, _excess(moved, others, 0.0)


def _parted(low: Grouped, high: Grouped, quantile: float, shift: int) -> tuple[Above, Above]:
    """Both arms above their common quantile, `low` moved up by `shift` bins."""
    edge = threshold(low.bins, high.bins, quantile, shift)
    return low.above(edge - shift), high.above(edge)


def _excess(more: Above, less: Above, margin: float) -> float:
    """Dependent samples are worth less, which is looked at only where there is something to be weakened."""
    p = excess(more.share, less.share, margin)
    if p == 1:
        return p
    one, other = more.effect, less.effect
    freedom = min(one.freedom, other.freedom)
    return excess(more.share.worth(one.samples), less.share.worth(other.samples), margin, freedom)


def _scores(rail: Guardrail, stable: Score, canary: Score) -> Comparison:
    deviation = math.hypot(*((score.high - score.low) / (2 * NORMAL_95) for score in (stable, canary)))
    worse = stable.mean - canary.mean - rail.margin
    z = worse / deviation if deviation else math.copysign(math.inf, worse)
    harmless = upper_tail(-z) if rail.proves else None
    return Comparison(stable.mean, canary.mean, upper_tail(z), harmless, (stable.n, canary.n))
