"""Who meets the canary: the same ones always, and as many as the weight says."""

import subprocess
import sys
from pathlib import Path

import pytest

from rollouts.assignment import BUCKETS, Assignment, Units

SALT = "5a" * 16
ROOT = Path(__file__).resolve().parents[2]


def canaries(weight: int, salt: str = SALT, count: int = 4000) -> set[int]:
    return {unit for unit in range(count) if Assignment.of(salt, f"user:{unit}").within(weight)}


def test_a_growing_weight_only_ever_adds_units() -> None:
    before: set[int] = set()
    for weight in (1, 100, 500, 2500, 5000, 9999, BUCKETS):
        assert before <= canaries(weight)
        before = canaries(weight)
    assert len(before) == 4000
    assert not canaries(0)


@pytest.mark.parametrize("weight", [100, 500, 2500, 5000])
def test_a_weight_is_its_share_of_the_units(weight: int) -> None:
    share = len(canaries(weight)) / 4000
    assert abs(share - weight / BUCKETS) < 0.03


def test_another_rollout_draws_others() -> None:
    both = canaries(5000) & canaries(5000, salt="a5" * 16)
    assert 800 < len(both) < 1200


def test_another_process_says_the_same() -> None:
    code = f"from rollouts.assignment import *; print([Assignment.of({SALT!r}, f'user:{{n}}') for n in range(50)])"
    other = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "platform")}, capture_output=True, check=True
    )
    assert other.stdout.decode().strip() == str([Assignment.of(SALT, f"user:{n}") for n in range(50)])


def test_the_nearest_unit_that_a_request_names_is_chosen() -> None:
    key = Units("k")
    assert [key.chosen(kind) for kind in ("auto", "user", "conversation", "key")] == ["key:k"] * 4
    talk = Units("k", conversation="c")
    assert (talk.chosen("auto"), talk.chosen("user"), talk.chosen("key")) == ("conversation:c", "key:k", "key:k")
    known = Units("k", user="u", conversation="c")
    assert (known.chosen("auto"), known.chosen("conversation")) == ("user:u", "conversation:c")


def test_a_user_is_not_taken_for_a_key_of_the_same_name() -> None:
    assert Units("x").chosen("auto") != Units("k", user="x").chosen("auto")
