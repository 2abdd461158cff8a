"""Tells how two versions of an adapter differ: config, ranks and norms, and what their makers say of them.

Small ones are compared at once; larger ones by a worker, whose result is kept for a day under their digests, which
never mean anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from django.conf import settings
from django.core.cache import cache
from django.utils.module_loading import import_string

from adapters.base import BaseSpec
from adapters.change import Adapter, compare
from adapters.errors import AdapterError
from adapters.limits import MIB
from adapters.store import Store
from dispatch import at_work, attended, send
from registry import quarantine
from registry.errors import VersionNotReady
from registry.models import STORED, Version

TASK = "jobs.tasks.work_out_comparison"
AT_ONCE = 64 * MIB  # of both versions' files together
KEPT = 24 * 3600  # seconds
AGAIN = 10  # seconds after which a worker is asked once more
FAILED = 300  # seconds for which a failure is remembered
DIGITS = 6


def compare_versions(first: Version, second: Version) -> dict[str, Any] | None:
    """How the two differ; None while a worker works it out. Raises VersionNotReady where there are no files."""
    for version in (first, second):
        if version.state not in STORED:
            raise VersionNotReady(f"v{version.number} is {version.state}, so there is nothing to compare.")
    content = _content(first, second)
    if content is None:
        return None
    return {
        "versions": [first.number, second.number],
        "summary": _differing(first.summary, second.summary),
        "metrics": _differing(first.metrics, second.metrics),
        **content,
        **{name: import_string(path)(first, second) for name, path in settings.VERSIONS_COMPARED_BY.items()},
    }


def work_out_comparison(first_id: UUID, second_id: UUID) -> None:
    """What a worker does for `compare_versions`. Repeatable."""
    stored = Version.objects.filter(state__in=STORED).select_related("adapter__base_model")
    found = stored.in_bulk([first_id, second_id])
    if len(found) < len({first_id, second_id}):
        return
    first, second = found[first_id], found[second_id]
    key = _key(first, second)
    with at_work(name := uuid5(NAMESPACE_URL, key)):
        if cache.get(key) is not None or attended(name):  # it was asked for again while it was worked out
            return
        try:
            cache.set(key, _work_out(first, second), KEPT)
        except AdapterError as error:
            cache.set(key, {"failed": str(error)}, FAILED)


def _content(first: Version, second: Version) -> dict[str, Any] | None:
    if first.size + second.size <= AT_ONCE:
        try:
            return _work_out(first, second)
        except AdapterError as error:
            raise VersionNotReady(str(error)) from error
    known: dict[str, Any] | None = cache.get(_key(first, second))
    if known is None and cache.add(f"{_key(first, second)}:asked", True, AGAIN):
        send(TASK, str(first.pk), str(second.pk))
    if known is not None and "failed" in known:
        raise VersionNotReady(known["failed"])
    return known


def _work_out(first: Version, second: Version) -> dict[str, Any]:
    """Raises AdapterError where the store has lost files, or a base model is described anew."""
    base = BaseSpec.from_json(first.adapter.base_model.spec)
    store = Store(settings.LORAYARD.store_url)
    with quarantine.scratch() as folder:
        adapters = []
        for side, version in (("first", first), ("second", second)):
            store.fetch(version.digest, folder / side)
            adapters.append(Adapter(folder / side, base))
        found: dict[str, Any] = _rounded(asdict(compare(*adapters)))
        return found


def _key(first: Version, second: Version) -> str:
    return f"comparison:{first.adapter.base_model_id}:{first.digest}:{second.digest}"


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted({*first, *second})
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _rounded(value: Any) -> Any:
    """Norms to as many digits as mean something; the same everywhere, so that equal answers are equal."""
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case dict():
            return {name: inner if name == "config" else _rounded(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
    return value
