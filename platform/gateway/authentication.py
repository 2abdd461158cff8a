"""Knows who calls: a key becomes a Caller; knows neither models nor prompts.

A verified key is remembered for half a second, so that revocation reaches this process within a second.
"""

import hashlib
import hmac
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from django.conf import settings

from apikeys import services
from apikeys.credentials import token_of
from apikeys.models import ApiKey, Scope
from evaluations.services import asks_with
from gateway.database import query
from gateway.errors import Forbidden, Unauthorized
from metering import budgets
from metering.budgets import Room
from metering.models import Purpose
from tenants import isolation
from tenants.models import Tenant

TTL = 0.5  # seconds
REMEMBERED = 4096  # keys
LATER = 10  # the priority of what may wait
LONGEST = 512  # characters of a key


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified key that may infer, and its tenant, with nothing left to fetch. adapters: allowed; empty is all.

    priority: the engine's, within the tenant's share; a key that may infer in the background only waits behind others.
    tester: may choose the arm of a rollout. purpose: what its calls are for.
    rooms: where each request has to find room first; none if nothing limits the key.
    """

    key: uuid.UUID
    tenant: Tenant
    adapters: tuple[str, ...]
    priority: int = 0
    tester: bool = False
    purpose: Purpose = Purpose.LIVE
    rooms: tuple[Room, ...] = ()

    @classmethod
    def of(cls, key: ApiKey, tenant: Tenant, purpose: Purpose, rooms: tuple[Room, ...]) -> Self:
        priority = 0 if key.may(Scope.INFERENCE) else LATER
        return cls(key.pk, tenant, tuple(key.adapters), priority, key.may(Scope.ROLLOUTS_TEST), purpose, rooms)

    @property
    def share(self) -> str:
        """Whose fair share pays: an id that never changes and means nothing outside."""
        return str(self.tenant.pk)

    @property
    def salt(self) -> str:
        """The tenant's domain in the prefix cache. A client can neither know nor choose it."""
        return _mac(b"prefix-cache:" + self.tenant.pk.bytes).hex()


async def authenticate(headers: Mapping[str, str]) -> Caller:
    """Who calls, whose tenant's rows the request sees from here on.

    Raises Unauthorized for any key that is not in order, Forbidden for one that may not infer.
    """
    token = token_of(headers)
    if not token or len(token) > LONGEST or not token.isascii():
        raise Unauthorized
    caller = await _known.get(token)
    if caller is None:
        raise Unauthorized
    isolation.confine(caller.tenant.pk)
    return caller


class Memory:
    """Verified keys, by the MAC of the whole token, each for TTL seconds from the moment it was asked about."""

    def __init__(self) -> None:
        self._callers: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()

    async def get(self, token: str) -> Caller | None:
        mac, now = _mac(token.encode()), time.monotonic()
        until, caller = self._callers.get(mac, (now, None))
        if caller is not None and now < until:
            return caller
        self._callers.pop(mac, None)
        found = await query(_verify, token)
        if found is not None:
            self._callers[mac] = (now + TTL, found)
            while len(self._callers) > REMEMBERED:
                self._callers.popitem(last=False)
        return found


def _verify(token: str) -> Caller | None:
    key = services.verify(token)
    if key is None:
        return None
    if key.tenant is None or not (key.may(Scope.INFERENCE) or key.may(Scope.BACKGROUND)):
        raise Forbidden(services.missing(key, Scope.INFERENCE))
    purpose = _purpose(key, key.tenant)
    rooms = budgets.rooms(key.tenant.pk, key.pk) if purpose is Purpose.LIVE else ()
    return Caller.of(key, key.tenant, purpose, rooms)


def _purpose(key: ApiKey, tenant: Tenant) -> Purpose:
    if key.may(Scope.INFERENCE):
        return Purpose.LIVE
    with isolation.within(tenant.pk):
        return Purpose.EVALUATION if asks_with(tenant, key) else Purpose.LIVE


def _mac(message: bytes) -> bytes:
    return hmac.digest(settings.LORAYARD.pepper.encode(), message, hashlib.sha256)


_known = Memory()
