"""Knows what a tenant may ask to be watched, as JSON. Knows no samples."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from rollouts.windows import SHARES, VALUES, Metric


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


DEFAULTS: dict[Metric, dict[str, Any]] = {
    Metric.ERRORS: {"margin": 0.005},
    Metric.EMPTY: {"margin": 0.01},
    Metric.CUT: {"margin": 0.05},
    Metric.REPETITION: {"margin": 0.02},
    Metric.REFUSALS: {"margin": 0.02},
    Metric.SCHEMA: {"margin": 0.01},
    Metric.THUMBS: {"margin": 0.05},
    Metric.FIRST_TOKEN: {"margin": 0.1},
    Metric.INTER_TOKEN: {"margin": 0.1},
    Metric.LENGTH: {"margin": 0.25, "direction": Direction.BOTH},
    Metric.EVALUATION: {"margin": 0.02, "direction": Direction.LOWER, "samples": 1},
}


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
    def of(cls, metric: Metric, **chosen: Any) -> Self:
        """With the metric's defaults for what is not chosen."""
        return cls(metric, **(DEFAULTS[metric] | chosen))

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """{"metric": "error_rate", …}; what is left out has the metric's default. Raises InvalidGuardrail."""
        if not isinstance(data, Mapping):
            raise InvalidGuardrail("A guardrail is an object.")
        if unknown := set(data) - {field.name for field in fields(cls)}:
            raise InvalidGuardrail(f"A guardrail has no {', '.join(sorted(map(repr, unknown)))}.")
        chosen = {name: _read(name, value) for name, value in data.items()}
        if "metric" not in chosen:
            raise InvalidGuardrail("A guardrail needs a 'metric'.")
        guardrail = cls.of(**chosen)
        guardrail.check()
        return guardrail

    def check(self) -> None:
        """Raises InvalidGuardrail where the fields do not go together."""
        if self.metric not in VALUES and self.margin >= 1:
            raise InvalidGuardrail(f"The margin of {self.metric} is a difference, less than 1.")
        usual = DEFAULTS[self.metric].get("direction", Direction.HIGHER)
        if self.metric is not Metric.LENGTH and self.direction is not usual:
            raise InvalidGuardrail(f"Harm to {self.metric} has one direction: {usual}.")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_share(self) -> bool:
        return self.metric in SHARES

    @property
    def is_voluntary(self) -> bool:
        """Whether users give it if they like, so that success can't wait for it."""
        return self.metric is Metric.THUMBS

    @property
    def proves(self) -> bool:
        return self.assurance is Assurance.RULED_OUT

    @property
    def enforced(self) -> bool:
        return self.mode is Mode.ENFORCE


def _read(name: str, value: Any) -> Any:
    kind = {"metric": Metric, "mode": Mode, "direction": Direction, "assurance": Assurance}.get(name)
    if kind is not None:
        if value not in list(kind):
            raise InvalidGuardrail(f"'{name}' is one of: {', '.join(kind)}.")
        return kind(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidGuardrail(f"'{name}' is a number, and not below 0.")
    if name == "samples" and value != int(value):
        raise InvalidGuardrail("'samples' is a whole number.")
    return int(value) if name == "samples" else float(value)
