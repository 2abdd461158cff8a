"""Makes and changes tenants: one transaction and one audit event each."""

from typing import Any

from django.db import IntegrityError, transaction

from audit.models import Action
from audit.services import Actor, record
from tenants.errors import Conflict
from tenants.models import Member, Role, Tenant

CHANGEABLE = {"name", "weight", "active", "quota_bytes", "quota_versions", "quota_uploads", "requires_signature"}


class SlugTaken(Conflict):
    code = "slug_taken"
    param = "slug"


def create_tenant(slug: str, name: str, *, actor: Actor, weight: float = 1.0) -> Tenant:
    """Raises SlugTaken, or ValidationError for a slug, name or weight that makes no sense."""
    tenant = Tenant(slug=slug, name=name, weight=weight)
    tenant.clean_fields()
    with transaction.atomic():
        try:
            with transaction.atomic():
                tenant.save(force_insert=True)
        except IntegrityError as error:
            raise SlugTaken(f"There is a tenant {slug!r} already.") from error
        record(Action.TENANT_CREATED, tenant=tenant, actor=actor, target=slug, data={"name": name, "weight": weight})
    return tenant


@transaction.atomic
def change_tenant(tenant: Tenant, *, actor: Actor, **changes: Any) -> Tenant:
    """Set what CHANGEABLE names. What stays the same is neither written nor recorded."""
    assert changes.keys() <= CHANGEABLE
    tenant = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
    before = {field: getattr(tenant, field) for field in changes}
    after = {field: value for field, value in changes.items() if value != before[field]}
    if not after:
        return tenant
    for field, value in after.items():
        setattr(tenant, field, value)
    tenant.clean_fields()
    tenant.save(update_fields=list(after))
    data = {"before": {field: before[field] for field in after}, "after": after}
    record(Action.TENANT_CHANGED, tenant=tenant, actor=actor, target=tenant.slug, data=data)
    return tenant


@transaction.atomic
def add_member(tenant: Tenant, user: Any, role: Role, *, actor: Actor) -> Member:
    """Give a person a role in the tenant, or change the role they have."""
    member, _ = Member.objects.update_or_create(tenant=tenant, user=user, defaults={"role": role})
    record(Action.MEMBER_ADDED, tenant=tenant, actor=actor, target=f"user:{user.pk}", data={"role": role.value})
    return member
