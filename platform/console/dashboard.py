"""What the first page tells: counts, the newest of everything, and the engine's state, which is asked for apart."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from apikeys.models import ApiKey
from audit.models import Event
from console import actors
from console.access import Access, access_of
from inference.client import EngineClient, EngineError, Residency, Stats
from metering.models import DailyUsage
from registry.models import PENDING, Adapter, State, Version
from registry.services import used
from tenants.models import Tenant

log = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds that the page waits for the engine
LATELY = timedelta(days=7)
NEWEST = 8


@dataclass(frozen=True)
class Count:
    """One number on the page, and the list that it counts."""

    title: str
    value: int
    icon: str
    url: str
    note: str = ""
    query: str = ""


def overview(request: HttpRequest) -> dict[str, Any]:
    access = access_of(request)
    events = list(_of(access, Event.objects.select_related("tenant"))[:NEWEST])
    actors.name(events, "actor")
    return {
        "counts": _counts(access),
        "versions": _versions(access).select_related("adapter__tenant").order_by("-created_at")[:NEWEST],
        "usage": _usage(access),
        "events": events,
    }


def engine(request: HttpRequest) -> HttpResponse:
    """The engine's panel. While the engine is away the page says so; it never fails."""
    access = access_of(request)
    state = async_to_sync(_ask)()
    context: dict[str, Any] = {"up": state is not None, "operator": access.operator}
    if state is not None:
        residency, stats = state
        context |= {"slots": residency.slots, "resident": resident(access, residency), "facts": _facts(stats)}
    return TemplateResponse(request, "console/engine.html", context)


async def _ask() -> tuple[Residency, Stats] | None:
    client = EngineClient(settings.LORAYARD.engine_url, settings.LORAYARD.engine_secret)
    try:
        return await client.residency(timeout=PATIENCE), await client.stats(timeout=PATIENCE)
    except EngineError as error:
        log.info("the engine did not tell its state: %s", error)
        return None
    finally:
        await client.close()


def _facts(stats: Stats) -> list[tuple[str, str]]:
    """What an operator looks at first."""
    gauges, counters = stats.gauges, stats.counters
    steps, seconds = counters.get("steps_total", 0), counters.get("step_seconds_total", 0)
    mixed = sum(count for adapters, count in stats.steps_by_adapters.items() if adapters > 1)
    return [
        ("Running", f"{gauges.get('running', 0):,.0f}"),
        ("Waiting", f"{gauges.get('waiting', 0):,.0f}"),
        ("Cache blocks free", f"{gauges.get('blocks_free', 0):,.0f} of {gauges.get('blocks', 0):,.0f}"),
        ("Tokens generated", f"{counters.get('generated_tokens_total', 0):,.0f}"),
        ("Prompt tokens", f"{counters.get('prompt_tokens_total', 0):,.0f}"),
        ("Steps", f"{steps:,.0f}"),
        ("Mean step", f"{1000 * seconds / steps:.1f} ms" if steps else "-"),
        ("Steps with several adapters", f"{mixed:,}"),
        ("Failed steps", f"{counters.get('failed_steps_total', 0):,.0f}"),
    ]


def resident(access: Access, residency: Residency) -> list[dict[str, Any]]:
    """The adapters on the device by the names that this person knows; a member is told of those alone that their own
    tenant had brought there."""
    states = {adapter.digest: adapter for adapter in residency.adapters if adapter.state != "absent"}
    found = _versions(access).filter(digest__in=states).select_related("adapter__tenant").order_by("created_at")
    versions = list(found) if access.operator else _brought(found)
    known = [{"state": states[version.digest], "version": version} for version in versions]
    named = {version.digest for version in versions}
    nameless = [{"state": state, "version": None} for digest, state in states.items() if digest not in named]
    return known + (nameless if access.operator else [])


def _brought(versions: Iterable[Version]) -> list[Version]:
    uses = {version: (version.adapter.tenant_id, version.digest) for version in versions}
    ours = used(uses.values())
    return [version for version, use in uses.items() if version.pinned_at is not None or use in ours]


def _counts(access: Access) -> list[Count]:
    since = timezone.now() - LATELY
    versions = _versions(access)
    tenants = Tenant.objects.all() if access.operator else Tenant.objects.filter(pk__in=access.tenants)
    adapters = _of(access, Adapter.objects.all())
    ready = adapters.filter(versions__state=State.READY).distinct().count()
    live = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    keys = _of(access, ApiKey.objects.filter(live, revoked_at=None))
    rejected, pending = Q(state=State.REJECTED, created_at__gte=since), Q(state__in=PENDING)
    versions_url = "admin:registry_version_changelist"
    return [
        Count("Tenants", tenants.count(), "domain", "admin:tenants_tenant_changelist"),
        Count("Adapters ready", ready, "tune", "admin:registry_adapter_changelist", f"of {adapters.count()}"),
        Count("Being validated", versions.filter(pending).count(), "hourglass_top", versions_url),
        Count(
            "Rejected", versions.filter(rejected).count(), "error", versions_url, "in 7 days", "?state__exact=rejected"
        ),
        Count("Keys live", keys.count(), "key", "admin:apikeys_apikey_changelist"),
    ]


def _usage(access: Access) -> list[dict[str, Any]]:
    """Requests and tokens of each of the last days that saw any, and the most that one of them saw."""
    today = timezone.now().date()
    days = _of(access, DailyUsage.objects.filter(day__gt=today - 2 * LATELY)).summed_by("day")
    rows = [{**row, "tokens": row["prompt_tokens"] + row["completion_tokens"]} for row in days]
    most = max((row["tokens"] for row in rows), default=0)
    return [{**row, "most": most} for row in rows]


def _versions(access: Access) -> QuerySet[Version]:
    return Version.objects.all() if access.operator else Version.objects.filter(adapter__tenant__in=access.tenants)


def _of(access: Access, rows: Any) -> Any:
    return rows if access.operator else rows.filter(tenant__in=access.tenants)
