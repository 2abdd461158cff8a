"""The tests and their levels against exact probabilities and SciPy's."""

import math

import numpy as np
import pytest
from scipy import stats

from rollouts import statistics
from rollouts.statistics import (
    FIRST,
    GROWTH,
    PACE,
    Share,
    beyond,
    design_effect,
    excess,
    imbalance,
    level,
    looks_due,
    quantile_of,
    threshold,
)


def rejected_from(level: float, canary: int, stable: Share, margin: float) -> int:
    """The fewest hits of the canary that reject."""
    return next(
        (hits for hits in range(canary + 1) if excess(Share(hits, canary), stable, margin) <= level), canary + 1
    )


def exact_size(canary: int, stable: int, share: float, margin: float, level: float) -> float:
    """How often a harmless canary is rejected, by summing over all that stable may show."""
    seen = range(*(int(stats.binom.ppf(q, stable, share)) for q in (1e-9, 1 - 1e-9)))
    firsts = [rejected_from(level, canary, Share(hits, stable), margin) for hits in seen]
    return float(stats.binom.pmf(seen, stable, share) @ stats.binom.sf(np.array(firsts) - 1, canary, share + margin))


@pytest.mark.parametrize(("canary", "stable"), [(20, 20), (20, 2000), (100, 400), (200, 200)])
@pytest.mark.parametrize(("share", "margin"), [(0.01, 0.0), (0.01, 0.005), (0.05, 0.02), (0.3, 0.0)])
@pytest.mark.parametrize("level", [1e-2, 1e-4])
def test_a_harmless_canary_is_rejected_no_more_often_than_the_level_says(
    canary: int, stable: int, share: float, margin: float, level: float
) -> None:
    assert exact_size(canary, stable, share, margin, level) <= level


@pytest.mark.parametrize("of", [1, 2, 3, 5, 8, 12, 19])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("level", [0.05, 1e-2, 1e-4])
def test_nor_in_an_evaluation_of_a_few_lines(of: int, share: float, level: float) -> None:
    assert exact_size(of, of, share, 0.02, level) <= level


@pytest.mark.parametrize(("hits", "of", "stable_hits", "stable_of"), [(5, 100, 100, 10000), (12, 500, 20, 2000)])
def test_without_a_margin_it_agrees_with_fishers_exact_test(
    hits: int, of: int, stable_hits: int, stable_of: int
) -> None:
    table = [[hits, of - hits], [stable_hits, stable_of - stable_hits]]
    fisher = stats.fisher_exact(table, alternative="greater").pvalue
    assert excess(Share(hits, of), Share(stable_hits, stable_of)) == pytest.approx(fisher, rel=0.5)


def test_an_excess_within_the_margin_or_of_nothing_is_none() -> None:
    assert excess(Share(8, 500), Share(100, 10_000), 0.01) == 1
    assert excess(Share(0, 0), Share(0, 10)) == 1
    assert excess(Share(500, 500), Share(500, 500)) == 1
    assert excess(Share(500, 500), Share(0, 500)) < 1e-100


def test_a_negative_margin_asks_whether_harm_is_ruled_out() -> None:
    assert excess(Share(50, 5000), Share(50, 5000), -0.02) < 1e-6
    assert excess(Share(5, 100), Share(1, 100), -0.02) > 0.005


def test_looks_are_due_at_a_growing_number_of_samples() -> None:
    assert [looks_due(n) for n in (0, FIRST - 1, FIRST, 24, 25, 31, 32)] == [0, 0, 1, 1, 2, 2, 3]
    assert looks_due(10**30) == statistics.LOOKS


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_all_looks_together_spend_alpha_and_no_more(alpha: float) -> None:
    """By simulating the test statistic itself, at the looks: importance is given to large values, as they are rare."""
    draws, looks = 200_000, 40
    generator = np.random.default_rng(4)
    drift = 0.0 if alpha > 0.01 else 0.35  # likelihood ratios undo it
    noise = math.sqrt(1 - 1 / GROWTH)
    z, weight = generator.standard_normal(draws), np.ones(draws)
    crossed, spent = np.zeros(draws, bool), 0.0
    for look in range(1, looks + 1):
        if look > 1:
            step = generator.standard_normal(draws) + drift
            weight *= np.exp(-drift * step + drift**2 / 2)
            z = z / math.sqrt(GROWTH) + noise * step
        now = ~crossed & (z >= stats.norm.isf(level(alpha, look)))
        spent += float(weight[now].sum()) / draws
        crossed |= now
    assert spent == pytest.approx(alpha * looks / (looks + PACE), rel=0.05)


def test_an_imbalance_is_as_unlikely_as_the_binomial_says() -> None:
    exact = stats.binomtest(80, 1000, 0.05).pvalue
    assert imbalance(80, 1000, 0.05) == pytest.approx(exact, rel=0.5)
    assert imbalance(0, 50, 0.01) > 0.3
    assert imbalance(500, 1000, 0.5) == 1


def test_units_that_repeat_themselves_count_for_less() -> None:
    generator = np.random.default_rng(1)
    totals = np.full(32, 100)
    assert design_effect(generator.binomial(100, 0.1, 32), totals).samples < 1.5
    agreeing = design_effect(10 * generator.binomial(10, 0.1, 32), totals)
    assert agreeing.samples == pytest.approx(10, rel=0.5)
    assert 31 < agreeing.freedom < 50
    assert design_effect(totals, totals) == (1, math.inf)
    assert design_effect(np.array([5, 0]), np.array([10, 10])).samples == 10, "two groups are no more than two samples"


def test_an_estimated_spread_is_less_certain_than_a_known_one() -> None:
    known, estimated = (excess(Share(30, 300), Share(30, 1000), 0.0, freedom) for freedom in (math.inf, 31))
    assert known < estimated < 100 * known


def test_a_threshold_leaves_the_quantile_of_both_arms_below_it() -> None:
    generator = np.random.default_rng(2)
    low, high = (np.bincount(generator.integers(0, 100, 10_000), minlength=100) for _ in range(2))
    edge = threshold(low, high, 0.9, shift=10)
    above = float(beyond(low, edge - 10)) + float(beyond(high, edge))
    assert above == pytest.approx(2000)
    assert quantile_of(low, 0.5) == pytest.approx(50, abs=2)
    assert float(beyond(low, -3)) == 10_000
    assert float(beyond(low, 1000)) == 0


@pytest.mark.parametrize(("low", "high"), [(10, 90), (90, 10), (50, 50), (98, 99)])
def test_a_threshold_parts_arms_that_are_each_in_one_bin(low: int, high: int) -> None:
    below, above = (200 * (np.arange(100) == place) for place in (low, high))
    edge = threshold(below, above, 0.95, shift=0)
    assert float(beyond(below, edge)) + float(beyond(above, edge)) == pytest.approx(20)
