"""Remembers for an hour which files a tenant had brought to the engine, by a request or by call; knows no engine.

Equal files of two tenants are one adapter to the engine, so a tenant is told where its version is only as far as it
had it brought there itself. Kept in the cache: of what is lost there, nobody is told.
"""

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from django.core.cache import cache

REMEMBERED = timedelta(hours=1)


def note_use(tenant: UUID, digest: str) -> None:
    cache.set(_key(tenant, digest), True, REMEMBERED.total_seconds())


def forget_use(tenant: UUID, digest: str) -> None:
    cache.delete(_key(tenant, digest))


def used(uses: Iterable[tuple[UUID, str]]) -> set[tuple[UUID, str]]:
    """Those of these tenants' digests that they brought to the engine of late."""
    keys = {_key(*use): use for use in uses}
    return {keys[key] for key in cache.get_many(keys)}


def _key(tenant: UUID, digest: str) -> str:
    return f"registry:used:{tenant}:{digest}"
