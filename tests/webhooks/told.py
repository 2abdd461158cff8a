"""What a tenant's endpoints are told, which tests of other apps' transitions ask."""

from collections.abc import Callable

from audit.services import SYSTEM
from tenants.models import Tenant
from webhooks.models import Delivery
from webhooks.services import create_endpoint


def listen(*tenants: Tenant, to: str = "*") -> Callable[[Tenant], list[str]]:
    """Gives each an endpoint; call the result for the events of one of them, the oldest first."""
    for tenant in tenants:
        create_endpoint(tenant, "https://hooks.example.com/", [to], actor=SYSTEM)

    def told(tenant: Tenant) -> list[str]:
        return list(Delivery.objects.filter(tenant=tenant).order_by("created_at").values_list("event", flat=True))

    return told
