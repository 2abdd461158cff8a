"""Knows when a canary is worse than stable, as good, or not yet known. Pure; knows no models, requests or clocks.

Call `decide` at every tick, with the windows of the step so far and the `look` of the step's last verdict:

    verdict = decide(guardrails, stable, canary, look=step.look, steps=len(steps), weight=500, samples=step.samples)
    step.look = verdict.look

Failure means that the canary is worse than stable by more than a guardrail's margin. It is declared at looks only; the
looks, the guardrails and the steps of a rollout share ALPHA, the chance that a harmless canary is ever rolled back.
Success means that the step's samples are there and no enforced guardrail sees harm. All else is inconclusive: too few
requests, in either arm, never are a failure, and an unlikely split of the units between the arms means that something
is wrong with the experiment, not with the canary. Minimum and maximum durations are the caller's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from rollouts.windows import Metric, Window

ALPHA = 0.05


class InvalidGuardrail(ValueError):
    """What the client wrote is no guardrail; the message says why."""


class Mode(StrEnum):
    ENFORCE = "enforce"
    OBSERVE = "observe"


class Direction(StrEnum):
    """Which way is harm."""

    HIGHER = "higher"
    LOWER = "lower"
    BOTH = "both"


class Assurance(StrEnum):
    """What success asks of a guardrail: that nothing points to harm, or that harm beyond the margin is ruled out."""

    UNSUSPECTED = "unsuspected"
    RULED_OUT = "ruled_out"


@dataclass(frozen=True, slots=True)
class Guardrail:
    """margin: how much worse the canary may be: a difference for shares and scores (0.01 is one percentage point), a
    part of stable's value for times and lengths (0.1 is 10 %). samples: of this metric, that success needs per arm.
    """

    metric: Metric
    mode: Mode = Mode.ENFORCE
    margin: float = 0.0
    direction: Direction = Direction.HIGHER
    assurance: Assurance = Assurance.UNSUSPECTED
    samples: int = 0

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """{"metric": "error_rate", …}; what is left out has the metric's default. Raises InvalidGuardrail."""
        raise NotImplementedError

    def as_json(self) -> dict[str, Any]:
        raise NotImplementedError


class Standing(StrEnum):
    """What one guardrail says of the canary."""

    HARM = "harm"
    DOUBT = "doubt"  # harm is suspected, or not yet ruled out
    FINE = "fine"
    WAITING = "waiting"  # too few samples


@dataclass(frozen=True, slots=True)
class Finding:
    """stable, canary: the shares, the quantiles (seconds, tokens) or the scores. p: of as much harm by chance."""

    guardrail: Guardrail
    standing: Standing
    stable: float | None
    canary: float | None
    p: float | None
    samples: tuple[int, int]  # of stable and of canary

    def as_json(self) -> dict[str, Any]:
        raise NotImplementedError


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
        raise NotImplementedError


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
    raise NotImplementedError


def tripped(canary: Sequence[Outcome], stable: Sequence[Outcome] = (), *, limit: int = 5) -> str | None:
    """Why the canary must go at once, or None. Both are recent outcomes, the newest last.

    `limit` engine errors in a row, unless stable fails as well, or any non-finite logits.
    """
    raise NotImplementedError
