"""Remembers for an hour which files a tenant had brought to the engine, by a request or by call; knows no engine.

Equal files of two tenants are one adapter to the engine, so a tenant is told where its version is only as far as it
had it brought there itself. Kept in the cache: of what is lost there, or while it is away, nobody is told.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

from django.core.cache import cache
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

REMEMBERED = timedelta(hours=1)


def note_use(tenant: UUID, digest: str) -> None:
    with _though_it_may_be_away():
        cache.set(_key(tenant, digest), True, REMEMBERED.total_seconds())


def forget_use(tenant: UUID, digest: str) -> None:
    with _though_it_may_be_away():
        cache.delete(_key(tenant, digest))


def used(uses: Iterable[tuple[UUID, str]]) -> set[tuple[UUID, str]]:
    """Those of these tenants' digests that they brought to the engine of late."""
    keys = {_key(*use): use for use in uses}
    with _though_it_may_be_away():
        return {keys[key] for key in cache.get_many(keys)}
    return set()


@contextmanager
def _though_it_may_be_away() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        log.warning("what is used can't be noted or looked up now: %s", type(error).__name__)


def _key(tenant: UUID, digest: str) -> str:
    return f"registry:used:{tenant}:{digest}"
