from typing import Any

import pytest

from rollouts.guardrails import Assurance, Direction, Guardrail, InvalidGuardrail, Mode
from rollouts.windows import Metric


@pytest.mark.parametrize("metric", Metric)
def test_every_metric_has_defaults_and_comes_back_from_json(metric: Metric) -> None:
    rail = Guardrail.parse({"metric": metric.value})
    assert rail.margin > 0
    assert Guardrail.parse(rail.as_json()) == rail


def test_what_is_given_is_taken() -> None:
    written = {"metric": "output_length", "mode": "observe", "margin": 1, "direction": "lower", "samples": 50}
    assert Guardrail.parse(written | {"assurance": "ruled_out"}) == Guardrail(
        Metric.LENGTH, Mode.OBSERVE, 1.0, Direction.LOWER, Assurance.RULED_OUT, 50
    )


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ([], "object"),
        ({}, "needs a 'metric'"),
        ({"metric": "speed"}, "one of"),
        ({"metric": ["error_rate"]}, "one of"),
        ({"metric": "error_rate", "colour": 1}, "no 'colour'"),
        ({"metric": "error_rate", "margin": -0.1}, "not below 0"),
        ({"metric": "error_rate", "margin": float("nan")}, "a number"),
        ({"metric": "error_rate", "margin": True}, "a number"),
        ({"metric": "error_rate", "margin": 1}, "less than 1"),
        ({"metric": "error_rate", "samples": 0.5}, "whole"),
        ({"metric": "error_rate", "direction": "lower"}, "one direction"),
    ],
)
def test_what_is_no_guardrail_is_refused_with_the_reason(written: Any, why: str) -> None:
    with pytest.raises(InvalidGuardrail, match=why):
        Guardrail.parse(written)
