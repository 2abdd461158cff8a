"""Knows what can go wrong between a gateway and an engine, and how it crosses the wire; knows neither HTTP nor torch.

EngineError
├── InvalidRequest            the request makes no sense; `param` names the field
│   └── PromptTooLong         prompt and answer do not fit the context
├── AdapterMissing            no version with that digest in the artifact store
├── AdapterUnavailable        the version is there and cannot be loaded
│   └── AdapterFaulty         for a reason that lies in its files: they are damaged or do not fit
├── PinsFull                  too many adapters are pinned to pin another
├── EngineBusy                the queue is full; come back after `retry_after` seconds
├── NotRead                   the answer's reader stood still for too long
├── EngineDown                nobody answers at the engine's address
└── Internal                  the engine's own fault
    ├── StepFailed            the model failed in a step that computed this request
    └── NonFinite             the model's output for this request was not a number
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import grpc

METADATA_KEY = "lorayard-error"


class EngineError(Exception):
    """A failed call. `code` is stable and machine-readable; the message is one sentence without secrets or prompts."""

    code: ClassVar[str] = "engine_error"
    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def details(self) -> dict[str, Any]:
        """What crosses the wire: JSON-serialisable, and enough for `parse` to build the same error."""
        return {"code": self.code, "message": self.message, "param": self.param, "retry_after": self.retry_after}

    @classmethod
    def parse(cls, details: Mapping[str, Any]) -> Self:
        return cls(str(details["message"]), param=details.get("param"), retry_after=details.get("retry_after"))


class InvalidRequest(EngineError):
    code = "invalid_request"
    status = grpc.StatusCode.INVALID_ARGUMENT


class PromptTooLong(InvalidRequest):
    """`tokens` were asked for (the prompt and what it wants to generate) where the context holds `limit`."""

    code = "context_length_exceeded"
    status = grpc.StatusCode.OUT_OF_RANGE

    def __init__(self, limit: int, tokens: int, *, param: str | None = "prompt") -> None:
        message = f"This model's maximum context length is {limit} tokens. However, your request has {tokens} tokens."
        super().__init__(message, param=param)
        self.limit = limit
        self.tokens = tokens

    def details(self) -> dict[str, Any]:
        return super().details() | {"limit": self.limit, "tokens": self.tokens}

    @classmethod
    def parse(cls, details: Mapping[str, Any]) -> Self:
        return cls(int(details["limit"]), int(details["tokens"]), param=details.get("param"))


class AdapterMissing(EngineError):
    code = "adapter_missing"
    status = grpc.StatusCode.NOT_FOUND


class AdapterUnavailable(EngineError):
    code = "adapter_unavailable"
    status = grpc.StatusCode.FAILED_PRECONDITION
    retryable = True


class AdapterFaulty(AdapterUnavailable):
    code = "adapter_faulty"


class PinsFull(EngineError):
    code = "pins_full"
    status = grpc.StatusCode.FAILED_PRECONDITION


class EngineBusy(EngineError):
    code = "engine_busy"
    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True

    def __init__(
        self,
        message: str = "The engine's queue is full.",
        *,
        param: str | None = None,
        retry_after: float | None = 1.0,
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)


class NotRead(EngineError):
    code = "answer_not_read"
    status = grpc.StatusCode.ABORTED


class EngineDown(EngineError):
    code = "engine_down"
    status = grpc.StatusCode.UNAVAILABLE
    retryable = True

    def __init__(
        self,
        message: str = "The engine cannot be reached.",
        *,
        param: str | None = None,
        retry_after: float | None = 1.0,
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)


class Internal(EngineError):
    code = "internal_error"
    status = grpc.StatusCode.INTERNAL


class StepFailed(Internal):
    code = "step_failed"


class NonFinite(Internal):
    code = "non_finite_output"


TREE: tuple[type[EngineError], ...] = (
    InvalidRequest,
    PromptTooLong,
    AdapterMissing,
    AdapterUnavailable,
    AdapterFaulty,
    PinsFull,
    EngineBusy,
    NotRead,
    EngineDown,
    Internal,
    StepFailed,
    NonFinite,
)
BY_CODE = {error.code: error for error in TREE}


def to_status(error: EngineError) -> tuple[grpc.StatusCode, str]:
    """The gRPC status to end a call with, and the value of its trailing metadata METADATA_KEY (ASCII)."""
    return error.status, json.dumps(error.details())


def from_status(status: grpc.StatusCode, details: str | None, message: str = "") -> EngineError:
    """The error that `to_status` was given; without details (a dead peer) the nearest that the status allows."""
    try:
        parsed = json.loads(details or "")
        return BY_CODE[parsed["code"]].parse(parsed)
    except (ValueError, KeyError, TypeError):
        return _from_bare_status(status, message)


def _from_bare_status(status: grpc.StatusCode, message: str) -> EngineError:
    match status:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return EngineDown()
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return EngineBusy()
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest(message or "The engine refused the request.")
        case grpc.StatusCode.UNAUTHENTICATED:
            return Internal("The engine refused the shared secret.")
        case _:
            return Internal(f"The engine failed with {status.name}.")
