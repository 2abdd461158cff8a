"""Takes users' thumbs, one per answer and tenant; the last word holds."""

from datetime import timedelta

from django.db.models import Q
from django.utils import timezone

from rollouts.models import ACTIVE, Feedback, Rollout
from tenants.models import Tenant

LATE = timedelta(days=1)  # thumbs still come in for a rollout that is over


def give_feedback(tenant: Tenant, response: str, *, up: bool) -> None:
    """Keep a thumb, if the tenant has a rollout that it may say something of. Whose answer it was is told by nothing.

    A thumb may come before its sample, which is kept a moment after the answer.
    """
    wanted = Rollout.objects.for_tenant(tenant).filter(Q(state__in=ACTIVE) | Q(ended_at__gt=timezone.now() - LATE))
    if wanted.exists():
        values = {"up": up, "at": timezone.now()}
        Feedback.objects.update_or_create(tenant=tenant, response=response, defaults=values)
