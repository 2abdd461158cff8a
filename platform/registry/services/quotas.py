"""Knows how much a tenant may have and has. What is on its way in counts from the moment it is announced.

A check holds the tenant's row until the transaction ends, so that of two who ask at once the second sees the first's.
"""

from dataclasses import dataclass

from django.db import connection
from django.db.models import Sum

from registry.errors import QuotaExceeded
from registry.intake import Upload
from registry.models import PENDING, Reference, State, Version
from tenants.models import Tenant

COUNTED = (*PENDING, State.READY, State.ARCHIVED)


@dataclass(frozen=True)
class Usage:
    """Bytes are those stored, each file once however many of the tenant's versions hold it, and those coming in."""

    bytes: int
    versions: int
    uploads: int
    pins: int


def usage(tenant: Tenant) -> Usage:
    stored = Reference.objects.for_tenant(tenant).aggregate(sum=Sum("blob__size"))["sum"] or 0
    versions = Version.objects.for_tenant(tenant).filter(state__in=COUNTED)
    waiting = versions.filter(state__in=PENDING).aggregate(sum=Sum("size"))["sum"] or 0
    uploads = Upload.objects.for_tenant(tenant).open()
    announced = uploads.aggregate(sum=Sum("bytes"))["sum"] or 0
    pins = versions.exclude(pinned_at=None).count()
    return Usage(stored + waiting + announced, versions.count(), uploads.count(), pins)


def limits(tenant: Tenant) -> Usage:
    return Usage(tenant.quota_bytes, tenant.quota_versions, tenant.quota_uploads, tenant.quota_pins)


def hold(tenant: Tenant) -> Tenant:
    """The tenant, its row locked until the transaction ends. It comes before the locks on adapters and blobs."""
    assert connection.in_atomic_block, "a check holds until its transaction ends"
    return Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)


def check(tenant: Tenant, *, bytes: int = 0, versions: int = 0, uploads: int = 0, pins: int = 0) -> None:
    """Raise QuotaExceeded unless the tenant may have so many more. Call it before other rows are locked."""
    tenant = hold(tenant)
    used, limit = usage(tenant), limits(tenant)
    for name, asked in (("bytes", bytes), ("versions", versions), ("uploads", uploads), ("pins", pins)):
        if getattr(used, name) + asked > getattr(limit, name):
            raise QuotaExceeded(name, used=getattr(used, name), asked=asked, limit=getattr(limit, name))
