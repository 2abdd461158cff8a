"""Knows whose rows the work at hand is about, and says so to PostgreSQL; knows no models and no policies.

A process that assumes the web role sees, through row-level security, the rows of the tenants that are in scope here
and of nobody when none is. A scope belongs to one context (a request, a task): `tenants.postgresql` tells it to
whatever connection that context uses, before the first query there, so no scope outlives its request on a connection.
Processes of the tables' owner (workers, commands) see all rows and need no scope.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import iscoroutinefunction
from typing import Any
from uuid import UUID

from django.utils.decorators import sync_and_async_middleware

SETTING = "lorayard.tenant"  # PostgreSQL's name for the scope; its policies read it
EVERY = "*"
NOBODY = ""

_scope: ContextVar[str] = ContextVar("tenants_in_scope", default=NOBODY)


def in_scope() -> str:
    """The ids of the tenants whose rows may be seen, with commas between them; or EVERY, or NOBODY."""
    return _scope.get()


def confine(*tenants: UUID) -> None:
    """From here to the request's end, these tenants' rows and no others."""
    _scope.set(_named(tenants))


def show_every_tenant_to_an_operator() -> None:
    """From here to the request's end, all rows. Only for an operator who has proved to be one."""
    _scope.set(EVERY)


@contextmanager
def within(*tenants: UUID) -> Iterator[None]:
    with _as(_named(tenants)):
        yield


@contextmanager
def across_every_tenant() -> Iterator[None]:
    """All rows, for what has to be known before it is known whose request it is. Keep it to one query by a secret."""
    with _as(EVERY):
        yield


@sync_and_async_middleware
def begins_with_nobody(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Middleware: a request sees nobody's rows until it is known whose it is, and leaves no scope behind."""

    async def later(request: Any) -> Any:
        with _as(NOBODY):
            return await get_response(request)

    def now(request: Any) -> Any:
        with _as(NOBODY):
            return get_response(request)

    return later if iscoroutinefunction(get_response) else now


@contextmanager
def _as(scope: str) -> Iterator[None]:
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


def _named(tenants: tuple[UUID, ...]) -> str:
    return ",".join(str(UUID(str(tenant))) for tenant in tenants)
