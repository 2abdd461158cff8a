"""Knows how much a tenant may have and has. What is on its way in counts from the moment it is announced.

A check holds the tenant's row until the transaction ends, so that of two who ask at once the second sees the first's.
"""

from dataclasses import asdict, dataclass, fields

from django.db.models import Sum

from apikeys.models import ApiKey
from registry.intake import Upload
from registry.models import PENDING, Adapter, Reference, State, Version
from tenants.errors import QuotaExceeded
from tenants.models import Tenant
from tenants.services import hold

COUNTED = (*PENDING, State.READY, State.ARCHIVED)


@dataclass(frozen=True)
class Usage:
    """Bytes are those stored, each file once however many of the tenant's versions hold it, and those coming in.

    Keys are those that work. Evaluation sets are an app's above this one, and counted as the tenant's own.
    """

    bytes: int
    versions: int
    uploads: int
    pins: int
    adapters: int
    keys: int
    evaluation_bytes: int


def usage(tenant: Tenant) -> Usage:
    stored = Reference.objects.for_tenant(tenant).aggregate(sum=Sum("blob__size"))["sum"] or 0
    versions = Version.objects.for_tenant(tenant).filter(state__in=COUNTED)
    waiting = versions.filter(state__in=PENDING).aggregate(sum=Sum("size"))["sum"] or 0
    uploads = Upload.objects.for_tenant(tenant).open()
    announced = uploads.aggregate(sum=Sum("bytes"))["sum"] or 0
    pins = versions.exclude(pinned_at=None).count()
    return Usage(
        bytes=stored + waiting + announced,
        versions=versions.count(),
        uploads=uploads.count(),
        pins=pins,
        adapters=Adapter.objects.for_tenant(tenant).count(),
        keys=ApiKey.objects.for_tenant(tenant).live().count(),
        evaluation_bytes=tenant.evaluation_sets.aggregate(sum=Sum("size"))["sum"] or 0,
    )


def limits(tenant: Tenant) -> Usage:
    return Usage(**{field.name: getattr(tenant, f"quota_{field.name}") for field in fields(Usage)})


def check(tenant: Tenant, **asked: int) -> None:
    """Raise QuotaExceeded unless the tenant may have so many more, of what Usage names; 0 asks whether it has too many.

    Call it before other rows are locked.
    """
    tenant = hold(tenant)
    used, limit = asdict(usage(tenant)), asdict(limits(tenant))
    for name, more in asked.items():
        if used[name] + more > limit[name]:
            raise QuotaExceeded(name, used=used[name], asked=more, limit=limit[name])
