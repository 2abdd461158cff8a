"""Knows what a person may see and do in the console: everything as an operator, by role as a tenant's member.

A superuser is an operator. Staff without memberships see an empty console. Django's own permissions play no part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest

from audit.requests import request_id
from audit.services import Actor
from tenants import isolation
from tenants.isolation import across_every_tenant
from tenants.models import Role, Tenant

RANKS = [Role.VIEWER, Role.EDITOR, Role.OWNER]


@dataclass(frozen=True)
class Access:
    operator: bool = False
    roles: Mapping[UUID, Role] = field(default_factory=dict)

    @property
    def tenants(self) -> list[UUID]:
        return list(self.roles)

    def tenants_as(self, role: Role) -> QuerySet[Tenant]:
        """The active tenants where the person may do what `role` may."""
        active = Tenant.objects.filter(active=True)
        return active if self.operator else active.filter(pk__in=[pk for pk in self.roles if self.may(role, pk)])

    def sees(self, tenant: UUID | None) -> bool:
        """What has no tenant is the operators'."""
        return self.operator or tenant in self.roles

    def may(self, role: Role | None, tenant: UUID | None) -> bool:
        """`role` None is what operators alone may do."""
        return self.operator or (tenant is not None and _reaches(self.roles.get(tenant), role))

    def may_somewhere(self, role: Role | None) -> bool:
        return self.operator or any(_reaches(held, role) for held in self.roles.values())


def access_of(request: HttpRequest) -> Access:
    """The person's rights, read once per request."""
    known: Access | None = getattr(request, "_console_access", None)
    if known is None:
        known = _read(request.user)
        request._console_access = known  # type: ignore[attr-defined]
    return known


def put_in_scope(request: HttpRequest) -> None:
    """From here on the request sees the rows of the person's tenants; an operator's those of all."""
    access = access_of(request)
    if access.operator:
        isolation.show_every_tenant_to_an_operator()
    else:
        isolation.confine(*access.tenants)


def actor_of(request: HttpRequest) -> Actor:
    """The person, as the audit chain names them."""
    return Actor(
        kind="user",
        id=str(request.user.pk),
        address=request.META.get("REMOTE_ADDR") or "",
        request_id=request_id(request),  # type: ignore[arg-type]  # asks for headers alone
        user_agent=request.headers.get("user-agent", ""),
    )


def _read(user: Any) -> Access:
    if not (user.is_active and user.is_staff):
        return Access()
    if user.is_superuser:
        return Access(operator=True)
    with across_every_tenant():  # memberships say whose rows the person sees
        return Access(roles={tenant: Role(role) for tenant, role in user.memberships.values_list("tenant_id", "role")})


def _reaches(held: Role | None, needed: Role | None) -> bool:
    return held is not None and needed is not None and RANKS.index(held) >= RANKS.index(needed)
