"""Knows how the control plane says no: its error tree, and the one JSON shape that every error takes.

    PlatformError                     400
    ├── Conflict                      409   the thing is not as the caller thought
    ├── Forbidden                     403   the caller may not do this
    │   └── QuotaExceeded                   with the quota's name, what is used, asked for and allowed
    ├── NotFound                      404   not there, or not the caller's: the same answer
    ├── TooLarge                      413
    ├── Unavailable                   503   what is needed does not answer now; with Retry-After
    └── StorageFull                   507   the platform's disk is full; nothing was kept

The shape is OpenAI's: {"error": {"message", "type", "param", "code"}}. Knows no views and no models.
"""

import errno
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

from django.core import exceptions as django
from django.db import InterfaceError, OperationalError
from django.http import Http404
from redis.exceptions import RedisError
from rest_framework import exceptions as drf
from rest_framework import status
from rest_framework.response import Response

log = logging.getLogger(__name__)

Body = dict[str, dict[str, Any]]

FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL = "53100"  # PostgreSQL's


class PlatformError(Exception):
    """An error a caller can act on. `param` names the field at fault, if there is one."""

    status: ClassVar[int] = status.HTTP_400_BAD_REQUEST
    code: ClassVar[str] = "invalid_request"
    kind: ClassVar[str] = "invalid_request_error"
    wait: ClassVar[int | None] = None  # seconds, after which trying again makes sense
    param: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param or self.param

    @property
    def body(self) -> Body:
        return error_body(str(self), kind=self.kind, param=self.param, code=self.code)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.wait is None else {"Retry-After": str(self.wait)}


class Conflict(PlatformError):
    status = status.HTTP_409_CONFLICT
    code = "conflict"


class Forbidden(PlatformError):
    status = status.HTTP_403_FORBIDDEN
    code = "forbidden"


class QuotaExceeded(Forbidden):
    code = "quota_exceeded"

    def __init__(self, quota: str, *, used: int, asked: int, limit: int) -> None:
        super().__init__(f"The quota of {quota} is {limit:,}; {used:,} are used and {asked:,} more were asked for.")
        self.param = quota
        self.numbers = {"quota": quota, "used": used, "requested": asked, "limit": limit}

    @property
    def body(self) -> Body:
        return {"error": {**super().body["error"], **self.numbers}}


class NotFound(PlatformError):
    status = status.HTTP_404_NOT_FOUND
    code = "not_found"


class TooLarge(PlatformError):
    status = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    code = "too_large"


class Unavailable(PlatformError):
    status = status.HTTP_503_SERVICE_UNAVAILABLE
    code = "service_unavailable"
    kind = "server_error"
    wait = 5


class StorageFull(PlatformError):
    status = status.HTTP_507_INSUFFICIENT_STORAGE
    code = "storage_full"
    kind = "server_error"
    wait = 60

    def __init__(self) -> None:
        super().__init__("The platform's disk is full. Nothing of this was kept; try again once there is room.")


def failure(error: BaseException) -> PlatformError | None:
    """What a caller is told of a failure below us that passes: a full disk, a server that is away; else None."""
    match error:
        case OSError() if error.errno in FULL:
            return StorageFull()
        case OperationalError() if getattr(error.__cause__, "sqlstate", None) == DISK_FULL:
            return StorageFull()
        case OperationalError() | InterfaceError():
            return Unavailable("The database does not answer. Try again soon.")
        case RedisError():
            return Unavailable("The cache does not answer. Try again soon.")
    return None


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Body:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


# One body for a key that is missing, malformed, unknown, revoked or expired: it gives no hint.
REFUSED = error_body("The API key is missing, or not valid.", code="invalid_api_key")


def exception_handler(error: Exception, context: dict[str, Any]) -> Response:
    """DRF's EXCEPTION_HANDLER: every error leaves in one shape; what was not foreseen is logged and says nothing."""
    from rest_framework.views import set_rollback  # that module reads settings which lead here

    set_rollback()
    if passing := failure(error):
        log.warning("%s: %s", type(passing).__name__, error)
        error = passing
    match error:
        case PlatformError():
            answer = Response(error.body, status=error.status, headers=error.headers)
        case Http404():
            answer = Response(NotFound("There is no such thing here.").body, status=NotFound.status)
        case django.ValidationError() | drf.ValidationError():
            answer = _invalid(drf_detail(error) if isinstance(error, django.ValidationError) else error.detail)
        case drf.APIException():
            answer = _refused(error) if _is_refusal(error) else _api_error(error)
        case django.RequestDataTooBig():
            answer = Response(TooLarge(str(error)).body, status=TooLarge.status)
        case django.SuspiciousOperation():
            answer = Response(PlatformError("The request is malformed.").body, status=PlatformError.status)
        case _:
            log.error("unforeseen error in the management API", exc_info=error)
            body = error_body("Something went wrong on our side.", kind="server_error", code="internal_error")
            answer = Response(body, status=status.HTTP_500_INTERNAL_SERVER_ERROR)
    return answer


def drf_detail(error: django.ValidationError) -> Any:
    """Django's validation error as DRF's detail."""
    return error.message_dict if hasattr(error, "error_dict") else error.messages


def _is_refusal(error: drf.APIException) -> bool:
    unexplained = isinstance(error, drf.PermissionDenied) and str(error.detail) == str(
        drf.PermissionDenied.default_detail
    )
    return unexplained or isinstance(error, drf.AuthenticationFailed | drf.NotAuthenticated)


def _refused(error: drf.APIException) -> Response:
    challenge = getattr(error, "auth_header", None)
    headers = {"WWW-Authenticate": challenge} if challenge else None
    return Response(REFUSED, status=error.status_code, headers=headers)


def _api_error(error: drf.APIException) -> Response:
    wait = getattr(error, "wait", None)
    headers = {"Retry-After": str(int(wait) + 1)} if wait is not None else None
    body = error_body(str(error.detail), code=str(error.get_codes()))
    return Response(body, status=error.status_code, headers=headers)


def _invalid(detail: Any) -> Response:
    faults = list(_faults(detail))
    message = " ".join(f"{param}: {text}" if param else text for param, text in faults)
    param = next((param for param, _ in faults if param), None)
    return Response(error_body(message, param=param, code="invalid_request"), status=status.HTTP_400_BAD_REQUEST)


def _faults(detail: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(detail, dict):
        for key, value in detail.items():
            inner = "" if key in ("non_field_errors", "__all__") else str(key)
            yield from _faults(value, ".".join(part for part in (path, inner) if part))
    elif isinstance(detail, list | tuple):
        for value in detail:
            yield from _faults(value, path)
    else:
        yield path, str(detail)
