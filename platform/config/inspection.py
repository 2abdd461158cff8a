"""Knows who may look at the platform's numbers and at its API's schema; knows nothing of what they see there."""

import hmac
from collections.abc import Callable, Coroutine
from functools import wraps
from ipaddress import ip_address
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from apikeys.credentials import token_of
from apikeys.services import verify
from tenants.errors import Forbidden

View = Callable[[HttpRequest], Coroutine[Any, Any, HttpResponse]]

FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")


def may_inspect(request: HttpRequest) -> bool:
    """Whether the setting lets in everybody, the caller bears the token, or calls from this machine itself."""
    env, token = settings.LORAYARD, token_of(request.headers) or ""
    borne = bool(env.inspect_token) and hmac.compare_digest(token.encode(), env.inspect_token.encode())
    return borne or env.inspect_from == "anywhere" or _is_local(request)


def inspected(view: View) -> View:
    """The view, for whoever may inspect."""

    @wraps(view)
    async def guarded(request: HttpRequest) -> HttpResponse:
        return await view(request) if may_inspect(request) else refusal()

    return guarded


class Inspector(BasePermission):
    """Whoever may inspect, and whoever has a key or is signed in: the schema is what they are served by."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        known = request.user is not None and request.user.is_authenticated
        return known or may_inspect(request) or verify(token_of(request.headers) or "") is not None


def refusal() -> HttpResponse:
    text = "Only calls from the machine itself, or with LORAYARD_INSPECT_TOKEN as bearer token, are answered here."
    error = Forbidden(text)
    return JsonResponse(error.body, status=error.status)


def _is_local(request: HttpRequest) -> bool:
    """From this machine, and not on somebody else's behalf."""
    try:
        address = ip_address(request.META.get("REMOTE_ADDR") or "")
    except ValueError:
        return False
    own = getattr(address, "ipv4_mapped", None) or address
    return own.is_loopback and not any(name in request.headers for name in FORWARDED)
