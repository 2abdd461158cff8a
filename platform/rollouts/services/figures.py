"""Adds samples up for people: counts and means of either arm, kept with the step, so that showing them is cheap."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rollouts.models import Arm, Outcome, Rollout, Sample, Step
from rollouts.windows import UNITS

COUNTS = ("requests", "errors", "abandoned", "cold_loads")
MEANS = ("first_token", "inter_token", "tokens")
HASHES = 2**53  # that a window's units are among

Sums = dict[str, float]


def added(sums: Mapping[str, float], samples: Iterable[Sample]) -> Sums:
    """The sums with these samples in them."""
    total = dict(sums)
    for sample in samples:
        for name, value in _parts(sample).items():
            total[name] = total.get(name, 0) + value
    return total


def figures(rollout: Rollout) -> dict[str, Any]:
    """Of either arm in the step that the rollout is at, as the last tick left them."""
    step = rollout.steps.filter(number=rollout.step).first()
    return {} if step is None else {arm: _shown(step, arm) for arm in Arm.values if step.sums.get(arm)}


def _shown(step: Step, arm: str) -> dict[str, Any]:
    sums, window = step.sums[arm], step.canary_window if arm == Arm.CANARY else step.stable_window
    counts = {name: int(sums.get(name, 0)) for name in COUNTS}
    means = {f"mean_{name}": _mean(sums, name) for name in MEANS}
    return {**counts, "units": _distinct(window.get("units", ())), **means}


def _parts(sample: Sample) -> Sums:
    """What one sample adds. Times of cold loads and lengths of answers that broke off say nothing of a version."""
    measured = {
        "first_token": None if sample.cold or sample.unanswered else sample.first_token,
        "inter_token": None if sample.cold else sample.inter_token,
        "tokens": sample.tokens if sample.outcome == Outcome.OK else None,
    }
    parts: Sums = {
        "requests": 1,
        "errors": sample.outcome == Outcome.ERROR,
        "abandoned": sample.outcome == Outcome.ABANDONED,
        "cold_loads": sample.cold,
    }
    for name, value in measured.items():
        if value is not None:
            parts |= {name: value, f"{name}_count": 1}
    return parts


def _mean(sums: Mapping[str, float], name: str) -> float | None:
    count = sums.get(f"{name}_count")
    return sums[name] / count if count else None


def _distinct(smallest: Collection[int]) -> int:
    """How many units there were, by the smallest of their hashes: exact below UNITS, then within some percent."""
    return len(smallest) if len(smallest) < UNITS else round((len(smallest) - 1) * HASHES / max(smallest))
