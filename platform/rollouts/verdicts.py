"""Knows when a canary is worse than stable, as good, or not yet known. Pure; knows no models, requests or clocks.

Call `decide` at every tick, with the windows of the step so far and the `look` of the step's last verdict:

    verdict = decide(guardrails, stable, canary, look=step.look, steps=len(steps), samples=step.samples, weight=500)
    step.look = verdict.look

Failure means that the canary is worse than stable by more than a guardrail's margin. It is declared at looks only; the
looks, the guardrails and the steps of a rollout share ALPHA, the chance that a harmless canary is ever rolled back.
Success means that the step's samples are there and no enforced guardrail sees harm. All else is inconclusive: too few
requests, in either arm, never are a failure, and an unlikely split of the units between the arms means that something
is wrong with the experiment, not with the canary. Minimum and maximum durations are the caller's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rollouts.comparison import Comparison, compare
from rollouts.guardrails import Assurance, Direction, Guardrail, InvalidGuardrail, Mode
from rollouts.statistics import FIRST, imbalance, level, looks_due
from rollouts.windows import UNITS, Metric, Sample, Score, Window

__all__ = [
    "Assurance",
    "Direction",
    "Finding",
    "Guardrail",
    "InvalidGuardrail",
    "Kind",
    "Metric",
    "Mode",
    "Outcome",
    "Sample",
    "Score",
    "Standing",
    "Verdict",
    "Window",
    "decide",
    "tripped",
]

ALPHA = 0.05
DOUBT = 0.25  # the chance, over all guardrails, that a harmless canary is asked for more samples than the step's
PROOF = 0.05  # the chance that harm at the margin is called ruled out
SKEWED = 0.0005  # the p below which the split of the units is no accident
ALL = 10_000


class Standing(StrEnum):
    """What one guardrail says of the canary."""

    HARM = "harm"
    DOUBT = "doubt"  # harm is suspected, or not yet ruled out
    FINE = "fine"
    BLIND = "blind"  # too few samples, or of too few units, to see even a canary that does all harm
    WAITING = "waiting"  # nothing was measured of one of the arms


@dataclass(frozen=True, slots=True)
class Finding:
    """stable, canary: the shares, the quantiles (seconds, tokens) or the scores. p: of as much harm by chance."""

    guardrail: Guardrail
    standing: Standing
    stable: float | None
    canary: float | None
    p: float | None
    samples: tuple[int, int]  # of stable and of canary

    @property
    def satisfied(self) -> bool:
        """Whether success need not wait for it."""
        if not self.guardrail.enforced:
            return True
        unknown = self.standing is Standing.WAITING or (self.standing is Standing.BLIND and self.guardrail.is_voluntary)
        enough = min(self.samples) >= self.guardrail.samples
        return enough and (self.standing is Standing.FINE or (unknown and not self.guardrail.proves))

    def __str__(self) -> str:
        metric = self.guardrail.metric.replace("_", " ")
        if self.standing is Standing.BLIND or self.stable is None or self.canary is None or self.p is None:
            return f"{metric}: too few samples or units ({self.samples[1]} of the canary, {self.samples[0]} of stable)"
        return f"{metric}: {self.canary:.4g} of the canary, {self.stable:.4g} of stable, p = {self.p:.2g}"

    def as_json(self) -> dict[str, Any]:
        return {
            **self.guardrail.as_json(),
            "standing": self.standing,
            "stable": self.stable,
            "canary": self.canary,
            "p": self.p,
            "stable_samples": self.samples[0],
            "canary_samples": self.samples[1],
        }


class Kind(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Verdict:
    """reasons: for people, one sentence each. look: to be given back at the next tick of the same step."""

    kind: Kind
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]
    look: int

    def as_json(self) -> dict[str, Any]:
        findings = [finding.as_json() for finding in self.findings]
        return {"kind": self.kind, "reasons": list(self.reasons), "findings": findings, "look": self.look}


class Outcome(StrEnum):
    """How a request ended, as far as the tripwire minds."""

    FINE = "fine"
    ENGINE_ERROR = "engine_error"
    NON_FINITE = "non_finite"


def decide(
    guardrails: Sequence[Guardrail],
    stable: Window,
    canary: Window,
    *,
    look: int,
    steps: int,
    samples: int,
    weight: int | None = None,
    alpha: float = ALPHA,
) -> Verdict:
    """look: of the step's last verdict, 0 at its start. samples: that the step asks of the canary. weight: of 10,000,
    by which units were assigned; None: the split is not checked. At 10,000 there is nothing to compare with."""
    judge = Judge(sum(rail.enforced for rail in guardrails), steps, alpha, look, looks_due(canary.requests))
    findings = tuple(judge.finding(rail, compare(rail, stable, canary)) for rail in guardrails)

    def verdict(kind: Kind, *reasons: str, look: int = max(look, judge.due)) -> Verdict:
        return Verdict(kind, reasons, findings, look)

    if weight is not None and (skew := _skew(stable, canary, weight)):
        return verdict(Kind.INCONCLUSIVE, skew, look=look)
    if harms := [str(found) for found in findings if found.standing is Standing.HARM and found.guardrail.enforced]:
        return verdict(Kind.FAILURE, *harms)
    if missing := list(_missing(stable, canary, samples, weight)):
        return verdict(Kind.INCONCLUSIVE, *missing)
    if weight != ALL and (open_ones := [str(found) for found in findings if not found.satisfied]):
        return verdict(Kind.INCONCLUSIVE, *open_ones)
    return verdict(Kind.SUCCESS, f"{canary.requests} requests, and no enforced guardrail sees harm")


@dataclass(frozen=True, slots=True)
class Judge:
    """The levels of one call of `decide`. look: the last that was made. due: those that the samples have earned."""

    enforced: int
    steps: int
    alpha: float
    look: int
    due: int

    def finding(self, rail: Guardrail, found: Comparison) -> Finding:
        return Finding(rail, self._standing(rail, found), found.stable, found.canary, found.harm, found.samples)

    def _standing(self, rail: Guardrail, found: Comparison) -> Standing:
        if found.harm is None:
            return Standing.WAITING
        suspicion = DOUBT / max(self.enforced, 1)
        if found.harm <= self._harm_level(rail, found):
            return Standing.HARM
        if found.harm <= suspicion:
            return Standing.DOUBT
        if found.worst > suspicion:
            return Standing.BLIND
        return Standing.FINE if found.harmless is None or found.harmless <= self._proof_level else Standing.DOUBT

    def _harm_level(self, rail: Guardrail, found: Comparison) -> float:
        """An evaluation does not change from look to look, and has the size that it has; all else is judged only where
        a new look is due, and there are FIRST samples."""
        share = self.alpha / (self.steps * max(self.enforced, 1))
        if rail.metric is Metric.EVALUATION:
            return share
        return level(share, self.due) if self.due > self.look and min(found.samples) >= FIRST else 0.0

    @property
    def _proof_level(self) -> float:
        return level(PROOF, self.due) if self.due else 0.0


def _skew(stable: Window, canary: Window, weight: int) -> str | None:
    """Why the split of the units is no accident, or None. A full sketch speaks for the units below its largest hash."""
    if not 0 < weight < ALL:
        return None
    limit = min((max(units) for units in (stable.units, canary.units) if len(units) >= UNITS), default=math.inf)
    here, there = (sum(unit <= limit for unit in window.units) for window in (canary, stable))
    if not here + there or imbalance(here, here + there, weight / ALL) > SKEWED:
        return None
    return (
        f"The split is not the step's: {here} of {here + there} units at the canary, where {weight / 100:g} % go there"
    )


def _missing(stable: Window, canary: Window, samples: int, weight: int | None) -> Iterator[str]:
    if canary.requests < max(samples, 1):
        yield f"{canary.requests} of {samples} requests that the step asks for"
    if stable.requests < FIRST and weight != ALL:
        yield f"stable had {stable.requests} requests, too few to compare with"


def tripped(canary: Sequence[Outcome], stable: Sequence[Outcome] = (), *, limit: int = 5) -> str | None:
    """Why the canary must go at once, or None. Both are recent outcomes, the newest last.

    `limit` engine errors in a row, unless most of stable's last `limit` failed as well; or any non-finite logits.
    """
    if Outcome.NON_FINITE in canary:
        return "The canary's logits were not finite"
    last = canary[-limit:]
    if len(last) < limit or any(outcome is not Outcome.ENGINE_ERROR for outcome in last):
        return None
    if 2 * sum(outcome is Outcome.ENGINE_ERROR for outcome in stable[-limit:]) > limit:
        return None
    return f"{limit} engine errors in a row"
