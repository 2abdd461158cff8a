import json

import pytest
from django.db import OperationalError
from django.urls import Resolver404

from gateway.errors import ApiError, translated
from inference.client import (
    AdapterMissing,
    AdapterUnavailable,
    EngineBusy,
    EngineDown,
    Internal,
    InvalidRequest,
    NotRead,
    PromptTooLong,
)
from registry.errors import ModelNotFound

CASES: list[tuple[Exception, int, str | None, str, str | None]] = [
    (InvalidRequest("no", param="stop"), 400, "invalid_value", "invalid_request_error", None),
    (PromptTooLong(limit=8, tokens=9), 400, "context_length_exceeded", "invalid_request_error", None),
    (ModelNotFound("x"), 404, "model_not_found", "invalid_request_error", None),
    (Resolver404(), 404, "unknown_url", "invalid_request_error", None),
    (EngineBusy(retry_after=2.2), 429, "engine_busy", "rate_limit_error", "3"),
    (NotRead("It was not read on."), 408, "answer_not_read", "invalid_request_error", None),
    (EngineDown(retry_after=0.1), 503, "engine_down", "server_error", "1"),
    (AdapterMissing("gone"), 503, "adapter_missing", "server_error", "1"),
    (AdapterUnavailable("broken", retry_after=5), 503, "adapter_unavailable", "server_error", "5"),
    (OperationalError("secret host"), 503, "service_unavailable", "server_error", "1"),
    (Internal("secret path"), 500, "internal_error", "server_error", None),
    (ZeroDivisionError("secret value"), 500, "internal_error", "server_error", None),
]


@pytest.mark.parametrize(("error", "status", "code", "kind", "retry_after"), CASES)
def test_every_failure_has_a_status_and_openais_shape(
    error: Exception, status: int, code: str | None, kind: str, retry_after: str | None
) -> None:
    response = translated(error).response()
    told = json.loads(response.content)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert (response.status_code, told["code"], told["type"]) == (status, code, kind)
    assert response.headers.get("Retry-After") == retry_after
    assert "secret" not in told["message"]


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = ApiError("x")
    assert translated(error) is error
