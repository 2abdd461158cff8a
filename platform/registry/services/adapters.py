"""Registers base models, makes and deletes adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError, Q

from adapters.base import describe
from audit.models import Action
from audit.services import SYSTEM, Actor, record
from registry.errors import AdapterInUse, AdapterNotFound, BaseModelChanged, NameTaken, NoBaseModel
from registry.models import Adapter, BaseModel, State
from registry.services import quotas
from tenants.models import Tenant


def register_base_model(source: str, name: str | None = None, *, actor: Actor = SYSTEM) -> BaseModel:
    """Describe the model at `source` and make it the default, the one that is served. Safe to repeat.

    Its name is the hub id, or the folder's last part. Raises BaseModelMissing and BaseModelUnsupported
    (adapters.errors), and BaseModelChanged when adapters exist for other shapes under this name. A description that
    says more than an earlier release's did takes its place.
    """
    name = name or (Path(source).resolve().name if Path(source).is_dir() else source)
    spec = describe(source).to_json()
    with transaction.atomic():
        known = BaseModel.objects.select_for_update().filter(name=name).first()
        if known and known.spec == spec and known.source == source and known.is_default:
            return known
        if known and known.adapters.exists() and not _says_all(spec, known.spec):
            raise BaseModelChanged(
                f"Adapters exist for a different model named {name!r}; register this one by another name."
            )
        BaseModel.objects.filter(is_default=True).update(is_default=False)
        values = {"source": source, "spec": spec, "is_default": True}
        base, _ = BaseModel.objects.update_or_create(name=name, defaults=values)
        record(Action.BASE_MODEL_REGISTERED, tenant=None, actor=actor, target=name, data={"source": source})
    return base


def _says_all(spec: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether a description says everything that an earlier one said, modules that it left out beside.

    Names of earlier Transformers are its own to know, and may be others with its next release.
    """
    return earlier.keys() <= spec.keys() and all(
        _says_all(spec[field], said) if isinstance(said, dict) else spec[field] == said
        for field, said in earlier.items()
        if field != "renamings"
    )


def create_adapter(tenant: Tenant, name: str, *, base_model: BaseModel | None = None, actor: Actor) -> Adapter:
    """A name without weights yet, for the base model that is served unless another is given.

    Raises NameTaken, NoBaseModel, QuotaExceeded, and ValidationError for a name that makes no sense.
    """
    base = base_model or BaseModel.objects.filter(is_default=True).first()
    if base is None:
        raise NoBaseModel("No base model is registered yet.")
    if BaseModel.objects.filter(name=name).exists():
        raise NameTaken(f"{name!r} is a base model's name.")
    adapter = Adapter(tenant=tenant, name=name, base_model=base)
    adapter.clean_fields()
    with transaction.atomic():
        quotas.check(tenant, adapters=1)
        try:
            with transaction.atomic():
                adapter.save(force_insert=True)
        except IntegrityError as error:
            raise NameTaken(f"There is an adapter {name!r} already.") from error
        record(Action.ADAPTER_CREATED, tenant=tenant, actor=actor, target=str(adapter), data={"base_model": base.name})
    return adapter


def ensure_adapter(tenant: Tenant, name: str, *, actor: Actor) -> Adapter:
    """The tenant's adapter of this name, made if need be."""
    existing = Adapter.objects.for_tenant(tenant).filter(name=name)
    try:
        return existing.first() or create_adapter(tenant, name, actor=actor)
    except NameTaken:
        if adapter := existing.first():
            return adapter
        raise


@transaction.atomic
def delete_adapter(adapter: Adapter, *, actor: Actor) -> None:
    """Remove an adapter of which nothing is left: no version but rejected ones and deleted ones that all that held
    them has let go of. Raises AdapterInUse."""
    adapter = locked(adapter)
    gone = Q(state=State.REJECTED) | Q(state=State.DELETED, released_at__isnull=False)
    if adapter.versions.exclude(gone).exists():
        raise AdapterInUse("Delete its versions first; the engine and the store may need a moment to let go of them.")
    target, tenant = str(adapter), adapter.tenant
    try:
        adapter.delete()
    except ProtectedError as error:
        raise AdapterInUse("The records of its rollouts or merges still tell of its versions.") from error
    record(Action.ADAPTER_DELETED, tenant=tenant, actor=actor, target=target)


def locked(adapter: Adapter) -> Adapter:
    """The adapter, its row locked until the transaction ends. Raises AdapterNotFound when it was deleted meanwhile."""
    rows = Adapter.objects.select_for_update(of=("self",), no_key=True).select_related("tenant", "base_model")
    row = rows.filter(pk=adapter.pk).first()
    if row is None:
        raise AdapterNotFound
    return row
