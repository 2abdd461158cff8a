"""Makes and changes tenants: one transaction and one audit event each."""

from typing import Any

from django.db import IntegrityError, connection, transaction

from audit.models import Action
from audit.redaction import difference, snapshot
from audit.services import Actor, record
from tenants.errors import Conflict, NotFound
from tenants.models import Member, Role, Tenant

QUOTAS = {
    *("quota_bytes", "quota_versions", "quota_uploads", "quota_adapters", "quota_keys", "quota_evaluation_bytes"),
    *("quota_pins",),
}
CHANGEABLE = {"name", "weight", "active", "requires_signature", *QUOTAS}


class NotAMember(NotFound):
    code = "not_a_member"


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
    data = difference(snapshot(tenant, changes), changes)
    if not data:
        return tenant
    for field, value in data["after"].items():
        setattr(tenant, field, value)
    tenant.clean_fields()
    tenant.save(update_fields=list(data["after"]))
    record(Action.TENANT_CHANGED, tenant=tenant, actor=actor, target=tenant.slug, data=data)
    return tenant


def hold(tenant: Tenant) -> Tenant:
    """The tenant, its row locked until the transaction ends. It comes before all other locks on what is its own."""
    assert connection.in_atomic_block, "a check holds until its transaction ends"
    return Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)


@transaction.atomic
def add_member(tenant: Tenant, user: Any, role: Role, *, actor: Actor) -> Member:
    """Give a person a role in the tenant, or change the role they have."""
    before = Member.objects.select_for_update().filter(tenant=tenant, user=user).values("role").first()
    member, _ = Member.objects.update_or_create(tenant=tenant, user=user, defaults={"role": role})
    data = {"username": user.get_username(), "role": role.value, "before": before["role"] if before else None}
    record(Action.MEMBER_ADDED, tenant=tenant, actor=actor, target=f"user:{user.pk}", data=data)
    return member


@transaction.atomic
def remove_member(tenant: Tenant, user: Any, *, actor: Actor) -> None:
    """Take a person's role away; from their next request on they see nothing of the tenant. Raises NotAMember."""
    member = Member.objects.select_for_update().filter(tenant=tenant, user=user).first()
    if member is None:
        raise NotAMember(f"{user.get_username()} is not a member of {tenant}.")
    member.delete()
    data = {"username": user.get_username(), "before": member.role}
    record(Action.MEMBER_REMOVED, tenant=tenant, actor=actor, target=f"user:{user.pk}", data=data)
