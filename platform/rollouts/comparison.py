"""Knows how each metric of two windows is compared: which test, with which margin. Knows no levels and no verdicts."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rollouts.guardrails import Direction, Guardrail
from rollouts.statistics import (
    FIRST,
    GROUPS,
    Counts,
    Effect,
    Share,
    beyond,
    design_effect,
    excess,
    quantile_of,
    student,
    threshold,
    upper_tail,
)
from rollouts.windows import OCTAVE, Metric, Score, Tally, Window, value_of

QUANTILES = {Metric.FIRST_TOKEN: 0.95, Metric.INTER_TOKEN: 0.95, Metric.LENGTH: 0.5}


@dataclass(frozen=True, slots=True)
class Comparison:
    """harm: p of "within the margin", None where an arm has no samples. harmless: p of "beyond it", if asked for.

    worst: what harm would be had the canary done all that it could in these samples; above its level, they can't tell.
    """

    stable: float | None
    canary: float | None
    harm: float | None
    harmless: float | None
    worst: float
    samples: tuple[int, int]


def compare(rail: Guardrail, stable: Window, canary: Window) -> Comparison:
    samples = stable.samples(rail.metric), canary.samples(rail.metric)
    if not min(samples):
        return Comparison(None, None, None, None, 1.0, samples)
    if rail.metric is Metric.EVALUATION:
        return _scores(rail, *(window.score for window in (stable, canary) if window.score))
    low, high = (Grouped(window.tally(rail.metric), window.waits(rail.metric)) for window in (stable, canary))
    return _shares(rail, low, high, samples) if rail.is_share else _quantiles(rail, low, high, samples)


class Grouped(NamedTuple):
    """What was measured of an arm, by groups of units. waits: values that are only lower bounds."""

    tally: Tally
    waits: Tally | None = None

    @property
    def bins(self) -> Tally:
        """Of all groups, a wait at what is known of it."""
        everything: Tally = (self.tally if self.waits is None else self.tally + self.waits).sum(0)
        return everything

    def quantile(self, quantile: float) -> float:
        return value_of(quantile_of(self.bins, quantile))

    def above(self, edge: float) -> "Above":
        """A wait that ended above the edge is above it. One that ended below says nothing, and is no sample."""
        hits, totals = beyond(self.tally, edge), self.tally.sum(1)
        if self.waits is None:
            return Above(hits, totals)
        longer = beyond(self.waits, edge)
        return Above(hits + longer, totals + longer)


@dataclass(frozen=True)
class Above:
    """How many of an arm's samples lie above an edge: of each group of units."""

    hits: Counts
    totals: Counts

    @cached_property
    def share(self) -> Share:
        return Share(float(self.hits.sum()), float(self.totals.sum()))

    @cached_property
    def effect(self) -> Effect:
        return design_effect(self.hits, self.totals)

    @property
    def few(self) -> bool:
        """Whether they are too few, or of too few units, for their absence to say anything."""
        return self.share.total < FIRST or int(np.count_nonzero(self.totals)) < GROUPS


def _shares(rail: Guardrail, stable: Grouped, canary: Grouped, samples: tuple[int, int]) -> Comparison:
    low, high = stable.above(1), canary.above(1)
    harm = _excess(high, low, rail.margin)
    harmless = _excess(low, high, -rail.margin) if rail.proves else None
    worst = _worst(high, low, rail.margin, high.share.total)
    return Comparison(low.share.value, high.share.value, harm, harmless, worst, samples)


def _quantiles(rail: Guardrail, stable: Grouped, canary: Grouped, samples: tuple[int, int]) -> Comparison:
    """A rank test, whose scores are 1 above the quantile of both arms together and 0 below it.

    The arm that should be lower has its values times 1 + margin. Where else the arms differ does not matter.
    """
    quantile = QUANTILES[rail.metric]
    pairs = {Direction.HIGHER: [(stable, canary)], Direction.LOWER: [(canary, stable)]}
    pairs[Direction.BOTH] = pairs[Direction.HIGHER] + pairs[Direction.LOWER]
    found = [_ranks(*pair, quantile, rail) for pair in pairs[rail.direction]]
    harm = min(1.0, len(found) * min(ranks.harm for ranks in found))
    worst = min(1.0, len(found) * max(ranks.worst for ranks in found))
    harmless = max((ranks.harmless for ranks in found if ranks.harmless is not None), default=None)
    return Comparison(stable.quantile(quantile), canary.quantile(quantile), harm, harmless, worst, samples)


class Ranks(NamedTuple):
    """As in a Comparison."""

    harm: float
    worst: float
    harmless: float | None


def _ranks(low: Grouped, high: Grouped, quantile: float, rail: Guardrail) -> Ranks:
    """Where harm is that `high` exceeds `low` times 1 + margin.

    A margin is taken as whole bins, up for harm and down for harmless, so that where values lie in their bins, which
    nobody knows, can't pass for either.
    """
    shift = OCTAVE * math.log2(1 + rail.margin)
    moved, others = _parted(low, high, quantile, math.ceil(shift))
    above = (1 - quantile) * (moved.share.total + others.share.total)
    harm, worst = _excess(others, moved, 0.0), _worst(others, moved, 0.0, above)
    if not rail.proves:
        return Ranks(harm, worst, None)
    moved, others = _parted(low, high, quantile, math.floor(shift))
    return Ranks(harm, worst, _excess(moved, others, 0.0))


def _parted(low: Grouped, high: Grouped, quantile: float, shift: int) -> tuple[Above, Above]:
    """Both arms above their common quantile, `low` moved up by `shift` bins."""
    edge = threshold(low.bins, high.bins, quantile, shift)
    return low.above(edge - shift), high.above(edge)


def _excess(more: Above, less: Above, margin: float) -> float:
    """Dependent samples are worth less, which is looked at only where there is something to be weakened."""
    p = excess(more.share, less.share, margin)
    return p if p == 1 else _weakened(more, less, margin, more.share, less.share)


def _worst(more: Above, less: Above, margin: float, above: float) -> float:
    """Had `more` as many of `above` as it can hold. 1 where there are too few samples, or of too few units."""
    if more.few or less.few:
        return 1.0
    most = min(above, more.share.total)
    return _weakened(more, less, margin, Share(most, more.share.total), Share(above - most, less.share.total))


def _weakened(more: Above, less: Above, margin: float, high: Share, low: Share) -> float:
    """p of shares, where samples are worth what they are to these arms."""
    one, other = more.effect, less.effect
    return excess(high.worth(one.samples), low.worth(other.samples), margin, min(one.freedom, other.freedom))


def _scores(rail: Guardrail, stable: Score, canary: Score) -> Comparison:
    """As if of different items, which for the same ones is the more cautious."""
    samples = stable.n, canary.n
    harm, harmless, worst = (_passed if stable.passes else _means)(rail.margin, stable, canary)
    return Comparison(stable.mean, canary.mean, harm, harmless if rail.proves else None, worst, samples)


def _passed(margin: float, stable: Score, canary: Score) -> tuple[float, float, float]:
    low, high = (Share(score.n * (1 - score.mean), score.n) for score in (stable, canary))  # those that failed
    worst = excess(Share(canary.n, canary.n), Share(0, stable.n), margin)
    return excess(high, low, margin), excess(low, high, -margin), worst


def _means(margin: float, stable: Score, canary: Score) -> tuple[float, float, float]:
    """Student's t, with the freedom of the smaller set. Values without a spread differ, or they don't."""
    freedom = min(stable.n, canary.n) - 1
    if freedom < 1:
        return 1.0, 1.0, 1.0
    deviation = math.hypot(*((score.mean - score.low) / student(0.975, score.n - 1) for score in (stable, canary)))
    worse = stable.mean - canary.mean - margin
    t = worse / deviation if deviation else math.copysign(math.inf, worse) if worse else 0.0
    return upper_tail(t, freedom), upper_tail(-t, freedom), 0.0
