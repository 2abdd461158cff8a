"""The benchmark's simulation, seeded and short: production's code decides whole rollouts."""

import numpy as np
import pytest

from benchmarks.rollouts import CASES, NOTHING, Ending, World, naive, roll, skewed
from rollouts.verdicts import Kind


def endings(world: World, runs: int) -> list[Ending]:
    draw = np.random.default_rng(11)
    return [roll(world, draw) for _ in range(runs)]


def test_a_harmless_canary_is_promoted() -> None:
    assert {ending.kind for ending in endings(World(), 12)} == {Kind.SUCCESS}


@pytest.mark.parametrize("world", [World(errors=0.05), World(slower=1.5), World(slower=1.5, above=0.9)])
def test_a_harmful_canary_is_rolled_back_before_it_has_30_percent_of_the_traffic(world: World) -> None:
    assert all(ending.kind is Kind.FAILURE and ending.weight < 3000 for ending in endings(world, 30))


def test_without_traffic_a_rollout_pauses() -> None:
    silent = [NOTHING, World(errors=1, canary_share=0.002), World(errors=1, stable_share=0)]
    assert {ending.kind for world in silent for ending in endings(world, 2)} == {Kind.INCONCLUSIVE}


def test_looking_often_is_harmless_only_if_alpha_is_spent_over_the_looks() -> None:
    draw = np.random.default_rng(3)
    assert naive(draw, 200) > 20
    assert naive(draw, 200, production=True) <= 10


def test_lost_units_hold_a_rollout_and_a_right_split_does_not() -> None:
    draw = np.random.default_rng(3)
    assert skewed(draw, 10, 0.1) == 0
    assert skewed(draw, 10, 0.06) == 10


def test_the_benchmark_asks_for_what_it_should() -> None:
    wanted = {case.name: (case.wanted, case.before) for case in CASES}
    assert wanted["errors 1 % -> 5 %"] == ("at least 99 %", 3000)
    assert CASES[0].meets(0.05)
    assert not CASES[0].meets(0.051)
