"""What fails for no fault of a version's is no observation of it."""

import uuid

import pytest

from gateway.errors import OF_A_VERSION, translated
from gateway.generation import Run
from inference import errors
from inference.client import EngineError
from rollouts.models import Arm, Outcome
from rollouts.observations import Observation
from rollouts.routing import Trial

OURS = (
    errors.Internal("x"),
    errors.StepFailed("x"),
    errors.EngineBusy(),
    errors.EngineDown(),
    errors.AdapterUnavailable("x"),
)
TRIAL = Trial(uuid.uuid4(), uuid.uuid4(), step=0, arm=Arm.CANARY, unit=7, counted=True)
ITS_OWN = (errors.NonFinite("x"), errors.AdapterFaulty("x"), errors.AdapterMissing("x"))


class Failed(Run):
    """A run that has begun for a trial and fails."""

    def __init__(self, error: EngineError) -> None:
        self._seen = Observation(TRIAL, Arm.CANARY)
        self._fail(error)

    @property
    def seen(self) -> Observation | None:
        return self._seen


@pytest.mark.parametrize("error", OURS, ids=lambda error: error.code)
def test_a_failure_of_ours_is_not_counted_against_a_version(error: EngineError) -> None:
    assert Failed(error).seen is None
    assert not isinstance(error, OF_A_VERSION)


@pytest.mark.parametrize("error", ITS_OWN, ids=lambda error: error.code)
def test_a_version_s_own_failure_is(error: EngineError) -> None:
    seen = Failed(error).seen
    assert seen is not None
    assert (seen.outcome, seen.code) == (Outcome.ERROR, error.code)


def test_output_that_is_not_finite_is_named_to_the_caller() -> None:
    told = translated(errors.NonFinite("x"))
    assert (told.status, told.error["code"], told.error["type"]) == (500, "non_finite_output", "server_error")
    assert "not finite" in told.message
