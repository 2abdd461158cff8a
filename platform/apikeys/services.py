"""Issues, verifies, rotates and revokes keys. A plaintext leaves here once, in the answer to `issue` or `rotate`.

A key is `ly_<prefix>_<secret>`: the prefix finds the row, the secret is 256 random bits of which only an HMAC under
the platform's pepper is kept.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.conf import settings
from django.db import models, transaction
from django.utils import timezone

from apikeys.models import CONFINABLE, ApiKey, Scope
from audit.models import Action
from audit.services import Actor, record
from tenants.errors import Forbidden, PlatformError, QuotaExceeded
from tenants.isolation import across_every_tenant
from tenants.models import Tenant
from tenants.services import hold

PLAINTEXT = re.compile(r"ly_([0-9a-f]{12})_([0-9a-f]{64})")
TOUCH_EVERY = timedelta(minutes=1)


class Exceeds(Forbidden):
    """A key was asked to hand out more than it holds."""

    code = "exceeds_own_rights"


class ScopeMissing(Forbidden):
    """A key that works was used for what it may not do."""

    code = "missing_scope"


class KeyRefused(PlatformError):
    """The key's fields make no sense."""

    code = "invalid_key"


def issue(
    tenant: Tenant | None,
    *,
    name: str,
    scopes: Iterable[str],
    adapters: Iterable[str] = (),
    expires_at: datetime | None = None,
    actor: Actor,
    issuer: ApiKey | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its plaintext, which is never seen again. `tenant` is None for an operator's key (`platform`).

    Raises Exceeds when `issuer` (None: a person or a command) does not itself hold what the new key would, and
    KeyRefused for what makes no sense, such as a key confined to some adapters with a scope about the whole tenant,
    and QuotaExceeded.
    """
    key = ApiKey(tenant=tenant, name=name, scopes=_scopes(tenant, scopes), adapters=sorted(set(adapters)))
    _check_confined(key)
    key.expires_at = expires_at
    if expires_at is not None and expires_at <= timezone.now():
        raise KeyRefused("The expiry lies in the past.", param="expires_at")
    with transaction.atomic():
        if tenant is not None and actor.kind != "system":
            _check_quota(tenant)
        plaintext = _save_new(key, issuer)
        record(Action.KEY_ISSUED, tenant=tenant, actor=actor, target=f"key:{key.pk}", data=_public(key))
    return key, plaintext


def rotate(
    key: ApiKey, *, grace: timedelta = timedelta(0), actor: Actor, issuer: ApiKey | None = None
) -> tuple[ApiKey, str]:
    """Replace a live key by one that may do the same; the old one works for `grace` longer.

    Raises Exceeds, and KeyRefused for a key that no longer works.
    """
    with transaction.atomic():
        if grace and key.tenant is not None and actor.kind != "system":
            _check_quota(key.tenant)
        old = ApiKey.objects.select_for_update(of=("self",), no_key=True).select_related("tenant").get(pk=key.pk)
        if not old.is_live:
            raise KeyRefused("Only a key that still works can be rotated.")
        scopes = [scope for scope in old.scopes if old.may(scope)]
        if not scopes:
            raise KeyRefused("Confined to adapters, this key may do nothing any more; issue another one.")
        new = ApiKey(tenant=old.tenant, name=old.name, scopes=scopes, adapters=old.adapters)
        new.expires_at = old.expires_at
        plaintext = _save_new(new, issuer)
        ends = timezone.now() + grace
        old.expires_at = min(ends, old.expires_at) if old.expires_at else ends
        old.save(update_fields=["expires_at"])
        data = {**_public(new), "replaces": str(old.pk), "old_expires_at": old.expires_at}
        record(Action.KEY_ROTATED, tenant=old.tenant, actor=actor, target=f"key:{new.pk}", data=data)
    return new, plaintext


@transaction.atomic
def revoke(key: ApiKey, *, actor: Actor, issuer: ApiKey | None = None) -> ApiKey:
    """End a key for good. Revoking again changes and records nothing.

    Raises Exceeds when `issuer` (None: a person or a command) does not itself hold what the key does.
    """
    if issuer is not None and issuer.pk != key.pk:
        _check_holds(key, issuer, "end a key with")
    if ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now()) == 1:
        record(Action.KEY_REVOKED, tenant=key.tenant, actor=actor, target=f"key:{key.pk}", data={"name": key.name})
    return ApiKey.objects.select_related("tenant").get(pk=key.pk)


def verify(plaintext: str) -> ApiKey | None:
    """The live key of this plaintext, else None, with nothing to tell why: the same work is done for every miss."""
    parsed = PLAINTEXT.fullmatch(plaintext)
    prefix, secret = parsed.groups() if parsed else ("", "")
    with across_every_tenant():  # the key says whose it is
        key = ApiKey.objects.select_related("tenant").filter(prefix=prefix).first()
    genuine = hmac.compare_digest(_mac(prefix, secret), key.mac if key else "0" * 64)
    if key is None or not genuine or not key.is_live:
        return None
    with across_every_tenant():
        _touch(key)
    return key


def missing(key: ApiKey, scope: str) -> str:
    """What a key's holder is told where it lacks the scope, with what to do."""
    if scope == Scope.PLATFORM:
        return "This needs the scope 'platform', which only an operator's key has."
    if key.tenant is None:
        return f"This needs the scope '{scope}', which no operator's key has: use a tenant's key."
    if key.adapters and scope not in CONFINABLE:
        return f"This needs the scope '{scope}', about the whole tenant: use a key that is not confined to adapters."
    return (
        f"This needs the scope '{scope}', which this key does not hold. A key's scopes never change, also where a new"
        " release adds some: issue a key that has it, with another key that has it or in the console."
    )


def _scopes(tenant: Tenant | None, scopes: Iterable[str]) -> list[str]:
    wanted = set(scopes)
    unknown = sorted(wanted - set(Scope.values))
    if unknown or not wanted:
        problem = f"There is no scope {unknown[0]!r}." if unknown else "A key needs a scope at least."
        raise KeyRefused(problem, param="scopes")
    if (tenant is None) != (wanted == {Scope.PLATFORM.value}) or (tenant and Scope.PLATFORM in wanted):
        raise KeyRefused("The scope 'platform' stands alone, on a key without a tenant.", param="scopes")
    return [scope.value for scope in Scope if scope in wanted]


def _save_new(key: ApiKey, issuer: ApiKey | None) -> str:
    if issuer is not None:
        _check_within(key, issuer)
    secret = secrets.token_hex(32)
    key.prefix = secrets.token_hex(6)
    key.mac = _mac(key.prefix, secret)
    key.clean_fields()
    key.save(force_insert=True)
    return f"ly_{key.prefix}_{secret}"


def _check_within(key: ApiKey, issuer: ApiKey) -> None:
    """An operator's key may hand out everything; any other no more than it has, and no longer than it lasts."""
    _check_holds(key, issuer, "hand out")
    if Scope.PLATFORM in issuer.scopes:
        return
    if issuer.expires_at and (key.expires_at is None or key.expires_at > issuer.expires_at):
        raise Exceeds("A key can't hand out a key that outlives it.", param="expires_at")


def _check_holds(key: ApiKey, issuer: ApiKey, what: str) -> None:
    if Scope.PLATFORM in issuer.scopes:
        return
    if key.tenant != issuer.tenant or not set(key.scopes) <= set(issuer.scopes):
        raise Exceeds(f"A key can't {what} scopes that it does not hold.", param="scopes")
    if issuer.adapters and not (key.adapters and set(key.adapters) <= set(issuer.adapters)):
        raise Exceeds(f"A key can't {what} adapters that it may not use.", param="adapters")


def _check_confined(key: ApiKey) -> None:
    wide = [scope for scope in key.scopes if scope not in CONFINABLE]
    if key.adapters and wide:
        problem = f"A key that is confined to adapters can't hold {', '.join(wide)}: that is about the whole tenant."
        raise KeyRefused(problem, param="scopes")


def _check_quota(tenant: Tenant) -> None:
    """Raises QuotaExceeded. What the platform itself issues, or its operator by command, counts and is not refused."""
    tenant = hold(tenant)
    used = ApiKey.objects.for_tenant(tenant).live().count()
    if used >= tenant.quota_keys:
        raise QuotaExceeded("keys", used=used, asked=1, limit=tenant.quota_keys)


def _mac(prefix: str, secret: str) -> str:
    pepper: str = settings.LORAYARD.pepper
    return hmac.new(pepper.encode(), f"{prefix}:{secret}".encode(), hashlib.sha256).hexdigest()


def _public(key: ApiKey) -> dict[str, object]:
    return {"name": key.name, "scopes": key.scopes, "adapters": key.adapters, "expires_at": key.expires_at}


def _touch(key: ApiKey) -> None:
    """Note the use, once a minute at most. Whoever finds the row locked skips it, so that a busy key never queues."""
    now = timezone.now()
    if key.last_used_at is not None and now - key.last_used_at < TOUCH_EVERY:
        return
    stale = models.Q(last_used_at=None) | models.Q(last_used_at__lte=now - TOUCH_EVERY)
    with transaction.atomic():
        free = ApiKey.objects.select_for_update(skip_locked=True, no_key=True).filter(stale, pk=key.pk)
        ApiKey.objects.filter(pk__in=[row.pk for row in free]).update(last_used_at=now)
