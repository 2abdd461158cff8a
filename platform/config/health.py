"""Whether this process lives, whether the platform does its work, and its numbers. Knows the engine by its client only.

`/readyz` is of the whole: it is red when anything that somebody must look at is. A load balancer asks it without what
`/v1` does without, in Kubernetes' way: `/readyz?exclude=redis&exclude=periodic`.
"""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence

from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from gateway import engine, lifespan
from gateway.database import query
from inference.client import EngineError, Stats, Tier
from jobs.ticks import Watch

PATIENCE = 3.0  # seconds that anything asked may take
WATCH = Watch()  # of this process
TIER_GAUGES = {
    "bytes": "Bytes of adapters held",
    "limit": "Bytes of adapters that may be held",
    "adapters": "Adapters held",
}
TIER_COUNTERS = {
    "hits": "Adapters wanted and found",
    "misses": "Adapters wanted and not found",
    "loads": "Adapters brought in",
    "evictions": "Adapters that made room for others",
    "seconds": "Seconds that loads took, added up",
}


async def live(_request: HttpRequest) -> HttpResponse:
    """200 as long as this process answers; says nothing about others."""
    return JsonResponse({"status": "ok"})


async def ready(request: HttpRequest) -> HttpResponse:
    """200 if all that is asked about is in order, else 503; each is named with "ok" or "down".

    database, redis, engine: they answer, the first and the last on the gateway's own connections. gateway: a chat would
    have to wait for nothing here. periodic: no periodic work is overdue; `overdue` names what is.
    """
    names = [name for name in PROBES if name not in request.GET.getlist("exclude")]
    answers = await asyncio.gather(*(_answers(PROBES[name]()) for name in names))
    states = {name: "ok" if up else "down" for name, up in zip(names, answers, strict=True)}
    up = all(answers)
    late = {} if states.get("periodic", "ok") == "ok" else {"overdue": WATCH.late}
    return JsonResponse(
        {"status": "ok" if up else "down", **states, **late},
        status=200 if up else 503,
        headers={"Cache-Control": "no-store"} | ({} if up else {"Retry-After": "1"}),
    )


async def serving(request: HttpRequest) -> HttpResponse:
    """`ready` without what `/v1` does without: whether a load balancer should send it requests."""
    request.GET = QueryDict("exclude=redis&exclude=periodic")
    return await ready(request)


async def metrics(_request: HttpRequest) -> HttpResponse:
    """This process's metrics and the engine's, in Prometheus' text format. The engine's are absent while it is down."""
    try:
        stats = await engine.client().stats(timeout=PATIENCE)
    except EngineError:
        stats = None
    remote = CollectorRegistry()
    remote.register(EngineCollector(stats))
    remote.register(PeriodicCollector(await _ages()))
    return HttpResponse(generate_latest(REGISTRY) + generate_latest(remote), content_type=CONTENT_TYPE_LATEST)


class PeriodicCollector(Collector):
    """Ages of each kind of periodic work as lorayard_periodic_age_seconds; none while the database does not answer."""

    def __init__(self, ages: Mapping[str, float]) -> None:
        self._ages = ages

    def collect(self) -> Iterator[Metric]:
        ages = GaugeMetricFamily(
            "lorayard_periodic_age_seconds", "Seconds since periodic work was last done to its end", labels=["kind"]
        )
        for kind, age in self._ages.items():
            ages.add_metric([kind], age)
        yield ages


class EngineCollector(Collector):
    """The engine's stats as lorayard_engine_*; None means that it did not answer."""

    def __init__(self, stats: Stats | None) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "lorayard_engine_up", "Whether the engine answered", value=float(self._stats is not None)
        )
        if self._stats is None:
            return
        for name, value in self._stats.gauges.items():
            yield GaugeMetricFamily(f"lorayard_engine_{name}", f"The engine's {name}", value=value)
        for name, value in self._stats.counters.items():
            if name != "steps_total":  # it is the sum of the family below
                yield CounterMetricFamily(f"lorayard_engine_{name}", f"The engine's {name}", value=value)
        yield _by(
            "adapters",
            "lorayard_engine_steps",
            "Steps by distinct adapters in the batch",
            self._stats.steps_by_adapters,
        )
        yield _by("rows", "lorayard_engine_steps_by_rows", "Steps by sequences in the batch", self._stats.steps_by_rows)
        yield from _of_tiers(self._stats.tiers)


def _of_tiers(tiers: Sequence[Tier]) -> Iterator[Metric]:
    """What the device, the host and the disk hold of adapters, and have done for them."""
    for field, text in TIER_GAUGES.items():
        gauge = GaugeMetricFamily(f"lorayard_engine_tier_{field}", text, labels=["tier"])
        for tier in tiers:
            gauge.add_metric([tier.name], getattr(tier, field))
        yield gauge
    for field, text in TIER_COUNTERS.items():
        counter = CounterMetricFamily(f"lorayard_engine_tier_{field}", text, labels=["tier"])
        for tier in tiers:
            counter.add_metric([tier.name], getattr(tier, field))
        yield counter


def _by(label: str, name: str, text: str, counts: Mapping[int, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, count in sorted(counts.items()):
        family.add_metric([str(key)], count)
    return family


async def _ages() -> dict[str, float]:
    try:
        return await asyncio.wait_for(query(WATCH.ages), PATIENCE)
    except Exception:  # the engine's numbers are told all the same
        return {}


async def _answers(probe: Awaitable[bool]) -> bool:
    try:
        return await asyncio.wait_for(probe, PATIENCE)
    except Exception:  # whatever the reason, the answer is that it is down
        return False


async def _database() -> bool:
    return await query(_selects)


def _selects() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return bool(cursor.fetchone() == (1,))


async def _redis() -> bool:
    async with Redis.from_url(settings.LORAYARD.redis_url, socket_timeout=PATIENCE) as redis:
        return bool(await redis.ping())


async def _engine() -> bool:
    return await engine.client().healthy(timeout=PATIENCE)


async def _periodic() -> bool:
    return not await query(WATCH.overdue)


PROBES = {
    "database": _database,
    "redis": _redis,
    "engine": _engine,
    "gateway": lifespan.prepared,
    "periodic": _periodic,
}
