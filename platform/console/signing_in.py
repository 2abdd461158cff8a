"""Records who signed in and who failed to, and says so when django-axes has locked somebody out. Decides nothing.

A lock is one account's from one address (`AXES_LOCKOUT_PARAMETERS`), so that no stranger locks a person out.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from axes.handlers.proxy import AxesProxyHandler
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.http import HttpRequest

from audit.models import Action
from audit.services import record
from console.access import actor_of
from tenants.isolation import across_every_tenant

View = Callable[..., Any]

LOCKED = "Too many attempts have failed. Wait {minutes} minutes before the next one, or ask an operator."


def recorded(view: View) -> View:
    """Put each attempt on the platform's chain; while a lock holds, attempts change nothing and are not recorded."""

    @wraps(view)
    def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if request.method != "POST":
            return view(request, *args, **kwargs)
        username = request.POST.get("username", "").replace("\0", "")
        locked = AxesProxyHandler.is_locked(request, {"username": username})
        with transaction.atomic():
            response = view(request, *args, **kwargs)
            if not locked and _is_attempt(request, response):
                _record(request, username, signed_in=response.status_code == 302)
        if getattr(request, "axes_locked_out", False):
            _tell(response)
        return response

    return inner


def client_address(request: HttpRequest) -> str | None:
    """The address that django-axes counts by; None on a Unix socket."""
    return request.META.get("REMOTE_ADDR") or None


def _is_attempt(request: HttpRequest, response: Any) -> bool:
    """Whether a name and a password were tried: a form without one costs nothing, and so leaves nothing behind."""
    return response.status_code == 302 or all(request.POST.get(field) for field in ("username", "password"))


def _record(request: HttpRequest, username: str, *, signed_in: bool) -> None:
    """A name that is no account's may be a password in the wrong field, so it is not written down."""
    user = get_user_model().objects.filter(username=username).first()
    action = Action.USER_SIGNED_IN if signed_in else Action.USER_SIGN_IN_FAILED
    data = {"locked": True} if getattr(request, "axes_locked_out", False) else {}
    target = f"user:{user.pk}" if user else "user:unknown"
    with across_every_tenant():  # the platform's chain is no tenant's
        record(action, tenant=None, actor=actor_of(request), target=target, data=data)


def _tell(response: Any) -> None:
    form = response.context_data["form"]
    form.errors.clear()
    form.add_error(None, LOCKED.format(minutes=int(settings.AXES_COOLOFF_TIME.total_seconds() // 60)))
    response.status_code = 429
    response.headers["Retry-After"] = str(int(settings.AXES_COOLOFF_TIME.total_seconds()))
