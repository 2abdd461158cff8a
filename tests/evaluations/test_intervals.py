"""The intervals against scipy's own, and what they are for: they hold the truth as often as they say."""

import random
from statistics import fmean

import pytest
from scipy.stats import binomtest, sem, t

from evaluations.intervals import mean, proportion


@pytest.mark.parametrize(("passed", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (499, 1000)])
def test_proportions_have_wilsons_interval(passed: int, n: int) -> None:
    score, known = proportion(passed, n), binomtest(passed, n).proportion_ci(method="wilson")
    assert (score.mean, score.n) == (passed / n, n)
    assert (score.low, score.high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert 0 <= score.low <= score.mean <= score.high <= 1


def test_means_have_students_interval_which_stops_where_values_do() -> None:
    values = [-0.5, -1.5, -0.25, -3.0]
    score = mean(values)
    known = t.interval(0.95, 3, loc=fmean(values), scale=sem(values))
    assert (score.low, score.high) == pytest.approx(known)
    assert mean(values, most=0.0).high == 0.0
    assert (mean([-1.0, -1.0]).low, mean([-1.0, -1.0]).high) == (-1.0, -1.0)


def test_they_hold_the_truth_in_about_95_of_100_sets() -> None:
    rng = random.Random(5)
    shares = [proportion(sum(rng.random() < 0.8 for _ in range(60)), 60) for _ in range(2000)]
    means = [mean([rng.gauss(-1, 0.5) for _ in range(12)]) for _ in range(2000)]
    assert 0.93 < fmean(score.low <= 0.8 <= score.high for score in shares) < 0.97
    assert 0.93 < fmean(score.low <= -1 <= score.high for score in means) < 0.97
