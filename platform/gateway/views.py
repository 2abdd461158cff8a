"""Knows how a view is called (by its method, with a verified caller) and how JSON is sent; knows no endpoint."""

from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from pydantic_core import to_json

from audit.requests import Utf8Request
from gateway.authentication import Caller, authenticate
from gateway.errors import JSON, MethodNotAllowed
from gateway.exchange import Exchange

P = ParamSpec("P")
T = TypeVar("T")


class GatewayRequest(Utf8Request):
    """A request whose body has been read, and the exchange that it opens."""

    exchange: Exchange

    def parsed(self, parse: Callable[[bytes], T]) -> T:
        """What is made of the body, of which nothing is held afterwards, nor a place for it."""
        try:
            return parse(self.read())
        finally:
            self._stream.close()
            self.exchange.place.leave_large()


View = Callable[Concatenate[GatewayRequest, Caller, P], Awaitable[HttpResponseBase]]
Endpoint = Callable[..., Coroutine[Any, Any, HttpResponseBase]]  # as Django sees it


def endpoint(method: str) -> Callable[[View[P]], Endpoint]:
    """No view is called but by its method, and with the caller of a key that is in order and has a place left.

    What answers GET answers HEAD as well: the server leaves out the body.
    """
    allowed = (method, "HEAD") if method == "GET" else (method,)

    def guard(view: View[P]) -> Endpoint:
        @wraps(view)
        async def guarded(request: GatewayRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if request.method not in allowed:
                raise MethodNotAllowed(", ".join(allowed))
            caller = await authenticate(request.headers)
            request.exchange.key = str(caller.key)
            request.exchange.place.take(caller)
            return await view(request, caller, *args, **kwargs)

        return guarded

    return guard


def json_response(data: dict[str, Any]) -> HttpResponse:
    return HttpResponse(to_json(data), JSON)
