import grpc
import pytest

from inference.errors import (
    AdapterMissing,
    AdapterUnavailable,
    EngineBusy,
    EngineDown,
    EngineError,
    Internal,
    InvalidRequest,
    NonFinite,
    NotRead,
    PinsFull,
    PromptTooLong,
    from_status,
    to_status,
)

ERRORS = [
    InvalidRequest("No such thing.", param="stop"),
    PromptTooLong(limit=512, tokens=600),
    AdapterMissing("Not in the store."),
    AdapterUnavailable("Damaged.", retry_after=5.0),
    PinsFull("All but one slot are pinned."),
    EngineBusy(retry_after=2.5),
    NotRead("The answer was not read on."),
    EngineDown(),
    Internal("Ünexpected."),
    NonFinite("Not a number."),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_an_error_crosses_the_wire_unchanged(error: EngineError) -> None:
    status, details = to_status(error)
    assert details.isascii()
    met = from_status(status, details)
    assert type(met) is type(error)
    assert met.details() == error.details()
    assert (str(met), met.retryable) == (str(error), error.retryable)


@pytest.mark.parametrize(
    "details", [None, "", "nonsense", "[]", "{}", '{"code": "unheard_of"}', '{"code": "engine_busy"}']
)
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, EngineDown),
        (grpc.StatusCode.DEADLINE_EXCEEDED, EngineDown),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, EngineBusy),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, Internal),
        (grpc.StatusCode.UNKNOWN, Internal),
    ],
)
def test_without_readable_details_the_status_decides(
    status: grpc.StatusCode, details: str | None, kind: type[EngineError]
) -> None:
    assert type(from_status(status, details, "a message")) is kind
