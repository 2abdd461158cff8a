"""Knows every way a call can fail and what OpenAI's clients expect to read then; knows no request.

ApiError
├── BadRequest           400  names the parameter
│   └── ContextExceeded  400  context_length_exceeded, with both numbers
├── Unauthorized         401  one body for every reason
├── Forbidden            403  the key works, and may not do this: names the scope
├── OriginRefused        403  a browser's page that may not open a WebSocket here
├── NotFound             404  no such path
├── ModelNotFound        404  unknown, another tenant's, not ready or not allowed: no difference to be seen
├── MethodNotAllowed     405
├── BodyTimeout          408
├── AnswerTimeout        408  in a stream that its reader left standing
├── TooLarge             413
├── UnsupportedEncoding  415  with Accept-Encoding
├── Busy                 429  with Retry-After
│   ├── TooManyOpen      429  a key or a tenant holds all that it may hold open
│   └── TooManyLarge     429  or sends as many large bodies as it may
├── QuotaExceeded        429  insufficient_quota, with Retry-After
├── ServerError          500
└── Unavailable          503  with Retry-After
"""

import logging
import math
from collections.abc import Iterable
from typing import Any, ClassVar

from django.db import InterfaceError, OperationalError
from django.http import HttpResponse
from django.urls import Resolver404
from pydantic_core import to_json

from inference.client import (
    AdapterFaulty,
    AdapterMissing,
    AdapterUnavailable,
    EngineBusy,
    EngineDown,
    EngineError,
    InvalidRequest,
    NonFinite,
    NotRead,
    PromptTooLong,
)
from metering.errors import BudgetExceeded
from registry import errors as registry_errors
from tenants.errors import PlatformError

logger = logging.getLogger(__name__)

JSON = "application/json"
ENDPOINTS = ("chat/completions", "completions", "responses", "models", "feedback", "files", "uploads")  # under /v1/

OVERFLOWED = (
    "The model's output for this request is not finite, so there is no answer. If the model is an adapter, its weights "
    "overflow: serve another version of it."
)
UNAVAILABLE: dict[type[EngineError], str] = {
    AdapterMissing: "This model's files cannot be found. Try again later.",
    AdapterUnavailable: "This model cannot be loaded now. Try again soon.",
    AdapterFaulty: "This model's files cannot be loaded. Try again later.",
    EngineDown: "The engine does not answer. Try again soon.",
}

OF_A_VERSION = (AdapterFaulty, AdapterMissing, NonFinite)
"""What counts against the version that was asked. Everything else is the platform's fault, the client's or nobody's: a
step that raises (StepFailed) fails every row in it, whosever they are."""


class ApiError(Exception):
    status: ClassVar[int]
    type: ClassVar[str] = "invalid_request_error"
    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.headers: dict[str, str] = {}

    @property
    def error(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def response(self) -> HttpResponse:
        return HttpResponse(to_json({"error": self.error}), JSON, self.status, headers=self.headers)


class BadRequest(ApiError):
    status = 400
    default_code = "invalid_value"


class ContextExceeded(BadRequest):
    """`tokens` were asked for (least: or more), of which `prompt` are the prompt's; the context holds `limit`."""

    default_code = "context_length_exceeded"

    def __init__(self, limit: int, tokens: int, *, param: str, prompt: int | None = None, least: bool = False) -> None:
        number = f"{'at least ' if least else ''}{tokens} tokens"
        parts = "" if prompt is None else f" ({prompt} in the prompt, {tokens - prompt} in the completion)"
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, you requested {number}{parts}.",
            param=param,
        )


class Unauthorized(ApiError):
    """One body whatever the reason, so that nothing can be learned about a key by trying."""

    status = 401
    default_code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("The API key is missing, or not valid.")
        self.headers["WWW-Authenticate"] = "Bearer"


class Forbidden(ApiError):
    status = 403
    default_code = "missing_scope"


class OriginRefused(ApiError):
    status = 403
    default_code = "origin_not_allowed"

    def __init__(self) -> None:
        super().__init__("Pages of this origin may not connect; whoever runs this server can allow them (CORS).")


class NotFound(ApiError):
    status = 404
    default_code = "unknown_url"


class ModelNotFound(ApiError):
    status = 404
    default_code = "model_not_found"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class MethodNotAllowed(ApiError):
    status = 405
    default_code = "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"Only {allowed} is allowed here.")
        self.headers["Allow"] = allowed


class BodyTimeout(ApiError):
    status = 408
    default_code = "request_timeout"


class AnswerTimeout(ApiError):
    status = 408
    default_code = "answer_not_read"


class TooLarge(ApiError):
    status = 413
    default_code = "request_too_large"


class UnsupportedEncoding(ApiError):
    status = 415
    default_code = "unsupported_encoding"

    def __init__(self, known: Iterable[str]) -> None:
        names = ", ".join(known)
        super().__init__(f"The body may be encoded once, as one of {names}; or not at all.")
        self.headers["Accept-Encoding"] = names


class Busy(ApiError):
    status = 429
    type = "rate_limit_error"
    default_code = "engine_busy"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.headers["Retry-After"] = _seconds(retry_after)


class TooManyOpen(Busy):
    default_code = "too_many_open_requests"

    def __init__(self, whose: str, limit: int) -> None:
        super().__init__(f"This {whose} has {limit} requests and WebSockets open here, which is its most. Close some.")


class TooManyLarge(Busy):
    default_code = "too_many_large_bodies"

    def __init__(self, whose: str, limit: int) -> None:
        super().__init__(f"This {whose} is sending {limit} large bodies, which is its most. Try again soon.")


class QuotaExceeded(ApiError):
    """Where only time helps, OpenAI's clients are told not to try again by themselves."""

    status = 429
    type = "insufficient_quota"
    default_code = "insufficient_quota"

    def __init__(self, message: str, retry_after: float, *, final: bool) -> None:
        super().__init__(message)
        self.headers["Retry-After"] = _seconds(retry_after)
        if final:
            self.headers["x-should-retry"] = "false"


class ServerError(ApiError):
    status = 500
    type = "server_error"
    default_code = "internal_error"

    def __init__(
        self, message: str = "The server had an error while processing your request.", *, code: str | None = None
    ) -> None:
        super().__init__(message, code=code)


class Unavailable(ApiError):
    status = 503
    type = "server_error"
    default_code = "service_unavailable"

    def __init__(self, message: str, retry_after: float | None = None, *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.headers["Retry-After"] = _seconds(retry_after)


def translated(error: Exception) -> ApiError:
    """What the client is told about any failure. What is nobody's plan is logged here and told as a 500."""
    match error:
        case ApiError():
            return error
        case EngineError():
            return _from_engine(error)
        case PlatformError():
            return _from_platform(error)
        case Resolver404():
            return NotFound(unknown_address(str(error.args[0]["path"]) if error.args else ""))
        case OperationalError() | InterfaceError():
            logger.warning("the database does not answer: %s", type(error).__name__)
            return Unavailable("The service is not ready. Try again soon.")
    logger.error("unexpected failure", exc_info=error)
    return ServerError()


def unknown_address(path: str) -> str:
    """What to tell of an address that is none: where the same endpoint is, if it ends as one does."""
    endpoint = next((known for known in ENDPOINTS if f"/{path}".rstrip("/").endswith(f"/{known}")), None)
    hint = f" Did you mean /v1/{endpoint}? A base URL ends with /v1." if endpoint else ""
    return f"There is nothing at this address.{hint}"


def _from_engine(error: EngineError) -> ApiError:  # noqa: PLR0911 - one for each kind
    match error:
        case PromptTooLong():
            return ContextExceeded(error.limit, error.tokens, param=error.param or "prompt")
        case InvalidRequest():
            return BadRequest(error.message, param=error.param)
        case EngineBusy():
            return Busy("The engine has more requests than it can queue. Try again soon.", error.retry_after)
        case NotRead():
            return AnswerTimeout(error.message)
        case AdapterMissing() | AdapterUnavailable() | EngineDown():
            return Unavailable(UNAVAILABLE[type(error)], error.retry_after, code=error.code)
        case NonFinite():
            return ServerError(OVERFLOWED, code=error.code)
    logger.error("the engine failed: %s", error.message)
    return ServerError()


def _from_platform(error: PlatformError) -> ApiError:
    match error:
        case registry_errors.ModelNotFound():
            return ModelNotFound(str(error))
        case BudgetExceeded():
            return QuotaExceeded(str(error), error.retry_after, final=error.final)
    logger.error("unexpected refusal", exc_info=error)
    return ServerError()


def _seconds(retry_after: float | None) -> str:
    return str(max(1, math.ceil(retry_after or 1)))
