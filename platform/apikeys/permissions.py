"""Decides who may call a management view, and attaches for which tenant and as whom."""

from typing import TYPE_CHECKING

from django.http import Http404
from rest_framework.exceptions import MethodNotAllowed, NotAuthenticated, ValidationError
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from apikeys.models import ApiKey
from apikeys.services import ScopeMissing, missing
from audit.requests import request_id
from audit.services import Actor
from tenants import isolation
from tenants.models import Tenant

if TYPE_CHECKING:
    from rest_framework.views import APIView


class HasScope(BasePermission):
    """A key with the view's scope for the method, or an operator by the console's session.

    A key sees its own tenant; naming another (`?tenant=`) is the same 404 as naming none that exists. Operators name
    any. A method that the view lacks is a 405 to whoever is known, whatever their scopes.
    """

    def has_permission(self, request: Request, view: "APIView") -> bool:
        from audit.api import Management  # DRF reads its settings, which lead here, before it has defined its views

        if not isinstance(view, Management):
            return False
        scope = view.scopes.get("GET" if request.method == "HEAD" else request.method or "")
        if scope is None and request.successful_authenticator:
            raise MethodNotAllowed(request.method or "")
        if scope is None:
            return False
        _check(request, scope)
        view.tenant = _put_in_scope(request)
        view.actor = actor_of(request)
        if view.needs_tenant and view.tenant is None:
            raise ValidationError({"tenant": "Name the tenant: ?tenant=<slug>."})
        return True


def actor_of(request: Request) -> Actor:
    key = request.auth
    return Actor(
        kind="key" if isinstance(key, ApiKey) else "user",
        id=str(request.user.pk),
        address=request.META.get("REMOTE_ADDR") or "",
        request_id=request_id(request),
        user_agent=request.headers.get("user-agent", ""),
    )


def _check(request: Request, scope: str) -> None:
    """Raises NotAuthenticated for nobody, ScopeMissing for somebody who may not."""
    if not request.successful_authenticator:
        raise NotAuthenticated
    if isinstance(request.auth, ApiKey):
        if not request.auth.may(scope):
            raise ScopeMissing(missing(request.auth, scope))
    elif not (request.user.is_active and request.user.is_superuser):
        raise ScopeMissing("Of sessions only an operator's may do this; send an API key of the tenant's.")


def _put_in_scope(request: Request) -> Tenant | None:
    """The request's tenant, whose rows and no others it sees from here on; None for an operator, who sees all."""
    if not isinstance(request.auth, ApiKey) or request.auth.tenant is None:
        isolation.show_every_tenant_to_an_operator()
    tenant = _tenant_of(request)
    if tenant is not None:
        isolation.confine(tenant.pk)
    return tenant


def _tenant_of(request: Request) -> Tenant | None:
    own = request.auth.tenant if isinstance(request.auth, ApiKey) else None
    slug = request.query_params.get("tenant")
    if slug is None or (own is not None and own.slug == slug):
        return own
    named = Tenant.objects.filter(slug=slug).first() if own is None and slug.isprintable() else None
    if named is None:
        raise Http404
    return named
