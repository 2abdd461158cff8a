"""Says which version a request's `model` means, for one tenant; what it may not have looks like what does not exist.

acme/support, support        the alias `stable`
acme/support@champion        that alias
acme/support@v7, @sha256:…   that version, pinned
<a base model's name>        the base model, no adapter
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Q, QuerySet

from registry.errors import ModelNotFound
from registry.models import DIGEST, NAME, STABLE, Alias, BaseModel, State, Version
from tenants.models import Tenant

PINNED = re.compile(r"v([1-9][0-9]{0,8})")
LONGEST = 512


@dataclass(frozen=True)
class Target:
    """What serves a request. `digest` is "" for the base model; `adapter` is the bare name."""

    model: str
    digest: str
    adapter: str | None
    version: int | None
    base: BaseModel


def resolve(tenant: Tenant, model: str, allowed: Sequence[str] = ()) -> Target:
    """The one ready version, or base model, that `model` names.

    `allowed` are the adapters that the key may use (none: all); the base model is always allowed. Two queries
    at most. Raises ModelNotFound, the same for unknown, another tenant's, unready and not allowed.
    """
    target = _adapter(tenant, model, allowed) or _base(model)
    if target is None:
        raise ModelNotFound(model)
    return target


def visible_models(tenant: Tenant, allowed: Sequence[str] = ()) -> list[Target]:
    """The base model that is served, then every alias of the tenant's that can be called, by name."""
    base = [Target(base.name, "", None, None, base) for base in BaseModel.objects.filter(is_default=True)]
    aliases = _callable(tenant, allowed).order_by("adapter__name", "name")
    bare_first = sorted(aliases, key=lambda alias: (alias.adapter.name, alias.name != STABLE, alias.name))
    return base + [_target(tenant, alias.version, alias.name) for alias in bare_first]


def alias_named(tenant: Tenant, model: str) -> tuple[str, str] | None:
    """The adapter's and the alias' names, where `model` can mean an alias of this tenant's; nothing is looked up."""
    name, ref = _split(tenant, model)
    return (name, ref) if name and re.fullmatch(NAME, ref) and not PINNED.fullmatch(ref) else None


def _adapter(tenant: Tenant, model: str, allowed: Sequence[str]) -> Target | None:
    name, ref = _split(tenant, model)
    if not name:
        return None
    if pin := PINNED.fullmatch(ref):
        return _pinned(tenant, name, ref, Q(number=int(pin[1])), allowed)
    if re.fullmatch(DIGEST, ref):
        return _pinned(tenant, name, ref, Q(digest=ref), allowed)
    if not re.fullmatch(NAME, ref):
        return None
    alias = _callable(tenant, allowed).filter(adapter__name=name, name=ref).first()
    return _target(tenant, alias.version, alias.name) if alias else None


def _split(tenant: Tenant, model: str) -> tuple[str, str]:
    """The adapter's bare name, and what of it is meant. The name is "" where it can't be one of this tenant's."""
    path, at, ref = model.partition("@")
    slug, slash, name = path.rpartition("/")
    if (slash and slug != tenant.slug) or not re.fullmatch(NAME, name) or (at and not ref):
        return "", ""
    return name, ref or STABLE


def _callable(tenant: Tenant, allowed: Sequence[str]) -> QuerySet[Alias]:
    aliases = Alias.objects.for_tenant(tenant).select_related("adapter", "version__adapter__base_model")
    aliases = aliases.filter(version__state=State.READY, adapter__base_model__is_default=True)
    return aliases.filter(adapter__name__in=allowed) if allowed else aliases


def _pinned(tenant: Tenant, name: str, ref: str, which: Q, allowed: Sequence[str]) -> Target | None:
    if allowed and name not in allowed:
        return None
    versions = Version.objects.for_tenant(tenant).select_related("adapter__base_model")
    ready = versions.filter(which, adapter__name=name, state=State.READY, adapter__base_model__is_default=True)
    version = ready.order_by("-number").first()
    return _target(tenant, version, ref) if version else None


def _target(tenant: Tenant, version: Version, ref: str) -> Target:
    adapter = version.adapter
    model = f"{tenant.slug}/{adapter.name}" + ("" if ref == STABLE else f"@{ref}")
    return Target(model, version.digest, adapter.name, version.number, adapter.base_model)


def _base(model: str) -> Target | None:
    if not model.isprintable() or len(model) > LONGEST:
        return None
    base = BaseModel.objects.filter(name=model, is_default=True).first()
    return Target(base.name, "", None, None, base) if base else None
