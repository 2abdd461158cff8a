"""Answers where no view did: Django's error handlers, and what fails before Django has a request.

APIs' paths get JSON, the console's Django's own pages. A database that is away is a 503, a full disk a 507, everywhere.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import defaults

from tenants.errors import Forbidden, NotFound, PlatformError, error_body, failure

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Any], Awaitable[None]]

APIS = ("/api/", "/v1/")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request.path):
        return _json(PlatformError("The request is malformed."))
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request.path):
        return _json(Forbidden("This is not allowed."))
    return defaults.permission_denied(request, exception)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request.path):
        return _json(NotFound("There is nothing at this address."))
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Called while the error is being handled. A failure that passes says so, and when to try again."""
    error = sys.exc_info()[1]
    passing = failure(error) if error is not None else None
    if passing is not None:
        if _is_api(request.path):
            return _json(passing)
        return HttpResponse(str(passing), status=passing.status, headers=passing.headers, content_type="text/plain")
    if _is_api(request.path):
        body = error_body("Something went wrong on our side.", kind="server_error", code="internal_error")
        return JsonResponse(body, status=500)
    return defaults.server_error(request)


class Answering:
    """The application, whose failures before it has a request (its body did not fit on the disk) are answers too."""

    def __init__(self, application: Any) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._application(scope, receive, sending)
        except Exception as error:
            passing = failure(error)
            if passing is None or begun:
                raise
            headers = {"Content-Type": "application/json", "Connection": "close", **passing.headers}
            told = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": passing.status, "headers": told})
            await send({"type": "http.response.body", "body": json.dumps(passing.body).encode()})


def _is_api(path: str) -> bool:
    return path.startswith(APIS)


def _json(error: PlatformError) -> JsonResponse:
    return JsonResponse(error.body, status=error.status, headers=error.headers)
