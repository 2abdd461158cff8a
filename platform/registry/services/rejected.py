"""Forgets rejected versions and their reports, a beat's job, so that what is refused day by day does not pile up.

An adapter's newest version keeps its row, whatever became of it: the next number is counted from there.
"""

from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F, OuterRef, Subquery
from django.utils import timezone

from audit.models import Action
from audit.services import SYSTEM, record
from registry.models import Version

AT_ONCE = 1000  # versions of one call; the next beat goes on


def forget_rejected() -> int:
    """Delete what was rejected more than LORAYARD_REJECTED_DAYS ago (0: nothing is). Returns how many versions."""
    days: float = settings.LORAYARD.rejected_days
    if not days:
        return 0
    newest = Version.objects.filter(adapter=OuterRef("adapter")).order_by("-number").values("number")[:1]
    old = Version.objects.rejected().filter(changed_at__lt=timezone.now() - timedelta(days=days))
    unneeded = old.annotate(newest=Subquery(newest)).filter(number__lt=F("newest"))
    return sum(_forget(version) for version in list(unneeded.values_list("pk", flat=True)[:AT_ONCE]))


@transaction.atomic
def _forget(version_id: UUID) -> bool:
    """False: another worker was quicker."""
    rows = Version.objects.rejected().select_for_update(of=("self",), skip_locked=True)
    version = rows.select_related("adapter__tenant").filter(pk=version_id).first()
    if version is None:
        return False
    data = {"rules": sorted({finding["rule"] for finding in version.findings}), "created_at": version.created_at}
    version.delete()
    record(Action.VERSION_FORGOTTEN, tenant=version.adapter.tenant, actor=SYSTEM, target=str(version), data=data)
    return True
