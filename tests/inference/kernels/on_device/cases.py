"""Which combinations of parameters the kernels' tests run: every one on a GPU, and under the interpreter a few."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def cases(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every combination of one value of each axis; under the interpreter, so few that any two values still meet."""
    every = list(itertools.product(*(range(len(axis)) for axis in axes)))
    chosen = _pairwise(every) if INTERPRETED else every
    return [tuple(axis[place] for axis, place in zip(axes, places, strict=True)) for places in chosen]


def _pairwise(every: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Greedily: always the combination with the most pairs that no earlier one has."""
    chosen, missing = [], set().union(*map(_pairs, every))
    while missing:
        chosen.append(max(every, key=lambda places: len(_pairs(places) & missing)))
        missing -= _pairs(chosen[-1])
    return sorted(chosen)


def _pairs(places: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(itertools.combinations(enumerate(places), 2))
