"""Serves adapters, versions and aliases. A key that is confined to some adapters does not see that there are others."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Model, QuerySet
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import ValidationError

from apikeys.models import ApiKey, Scope
from audit.api import Management
from audit.parsing import StrictForm, StrictJson
from registry import services
from registry.errors import AdapterNotFound, UploadNotFound
from registry.models import NAME, Adapter, Alias, AliasMove, BaseModel, Version
from registry.serializers import (
    DIFF,
    UPLOAD_REQUEST,
    AdapterSerializer,
    AliasMoveSerializer,
    AliasSerializer,
    Annotations,
    FromFiles,
    Move,
    NewAdapter,
    OneAliasSerializer,
    PlaceSerializer,
    Rollback,
    VersionSerializer,
)
from registry.upload_views import IntoQuarantine, visible_uploads

READ_WRITE = {"GET": Scope.ADAPTERS_READ, "POST": Scope.ADAPTERS_WRITE}
READ_DELETE = {"GET": Scope.ADAPTERS_READ, "DELETE": Scope.ADAPTERS_WRITE}

M = TypeVar("M", bound=Model)


class RegistryView(Management[M]):
    @property
    def allowed(self) -> Sequence[str]:
        """Names of the adapters that the caller may deal with; none: all."""
        return self.request.auth.adapters if isinstance(self.request.auth, ApiKey) else []

    def adapters(self) -> QuerySet[Adapter]:
        adapters = Adapter.objects.for_tenant(self.tenant).select_related("tenant", "base_model")
        return adapters.filter(name__in=self.allowed) if self.allowed else adapters

    def adapter(self) -> Adapter:
        """The one that the URL names. Raises AdapterNotFound."""
        name = self.kwargs["name"]
        adapter = self.adapters().filter(name=name).first() if re.fullmatch(NAME, name) else None
        if adapter is None:
            raise AdapterNotFound
        return adapter

    def check_allowed(self, name: str) -> None:
        if self.allowed and name not in self.allowed:
            raise AdapterNotFound


class Adapters(mixins.ListModelMixin, RegistryView[Adapter]):
    scopes = READ_WRITE
    ordering = ("name",)
    serializer_class = AdapterSerializer

    def get_queryset(self) -> QuerySet[Adapter]:
        return self.adapters().prefetch_related("aliases__version")

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=NewAdapter, responses={201: AdapterSerializer})
    def post(self, request: Request) -> Response:
        wanted = NewAdapter(data=request.data)
        wanted.is_valid(raise_exception=True)
        name = wanted.validated_data["name"]
        self.check_allowed(name)
        base = _base_model(wanted.validated_data.get("base_model"))
        adapter = services.create_adapter(self.tenant, name, base_model=base, actor=self.actor)
        return Response(AdapterSerializer(adapter).data, status=status.HTTP_201_CREATED)


class OneAdapter(RegistryView[Adapter]):
    scopes = READ_DELETE
    serializer_class = AdapterSerializer

    def get(self, request: Request, name: str) -> Response:
        return Response(AdapterSerializer(self.adapter()).data)

    def delete(self, request: Request, name: str) -> Response:
        services.delete_adapter(self.adapter(), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)


class Versions(mixins.ListModelMixin, IntoQuarantine, RegistryView[Version]):
    scopes = READ_WRITE
    ordering = ("-number",)
    serializer_class = VersionSerializer
    parser_classes = [StrictForm, StrictJson]

    def get_queryset(self) -> QuerySet[Version]:
        return _shown(self.adapter().versions.kept())

    def get(self, request: Request, name: str) -> Response:
        return self.list(request)

    @extend_schema(request=UPLOAD_REQUEST, responses={202: VersionSerializer})
    def post(self, request: Request, name: str) -> Response:
        self.check_allowed(name)
        Adapter(name=name).clean_fields(exclude=["tenant", "base_model"])
        given = self.given(request)
        adapter = services.ensure_adapter(self.tenant, name, actor=self.actor)
        version = services.upload_version(adapter, **given, actor=self.actor)
        location = reverse("registry:version", args=[name, version.number])
        if "tenant" in request.query_params:
            location += f"?tenant={self.tenant.slug}"
        return Response(VersionSerializer(version).data, status.HTTP_202_ACCEPTED, headers={"Location": location})

    def given(self, request: Request) -> dict[str, Any]:
        """The files that come with the request, or the uploads that it names."""
        if (request.content_type or "").startswith("multipart/"):
            unknown = sorted(set(request.data) - set(request.FILES) - {"signature"})
            if unknown:
                raise ValidationError({field: "Unknown; send files, and a signature." for field in unknown})
            files = [file for _, files in request.FILES.lists() for file in files]
            return {"files": files, "signature": request.POST.get("signature", "")}
        wanted = FromFiles(data=request.data)
        wanted.is_valid(raise_exception=True)
        keys = [UUID(public_id[-32:]) for public_id in wanted.validated_data["files"]]
        found = visible_uploads(self).in_bulk(keys)
        if len(found) < len(keys):
            raise UploadNotFound
        return {"received": [found[key] for key in keys], "signature": wanted.validated_data.get("signature", "")}


class AboutVersion(RegistryView[Version]):
    """Base of the views about one version that is not deleted."""

    scopes = {"POST": Scope.ADAPTERS_WRITE}
    serializer_class: Any = VersionSerializer

    def version(self, number: int) -> Version:
        return get_object_or_404(_shown(self.adapter().versions.kept()), number=number)


class OneVersion(AboutVersion):
    scopes = {**READ_DELETE, "PATCH": Scope.ADAPTERS_WRITE}

    def get(self, request: Request, name: str, number: int) -> Response:
        return Response(VersionSerializer(self.version(number)).data)

    @extend_schema(request=Annotations)
    def patch(self, request: Request, name: str, number: int) -> Response:
        """Sets `notes` and `metrics`; all else about a version never changes."""
        version = self.version(number)
        wanted = Annotations(data=request.data)
        wanted.is_valid(raise_exception=True)
        changed = services.annotate_version(version, actor=self.actor, **wanted.validated_data)
        return Response(VersionSerializer(changed).data)

    def delete(self, request: Request, name: str, number: int) -> Response:
        """Takes it out of service, off the engine and out of the store; 409 names what needs it."""
        services.delete_version(self.version(number), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)


class Archive(AboutVersion):
    @extend_schema(request=None)
    def post(self, request: Request, name: str, number: int) -> Response:
        archived = services.archive_version(self.version(number), actor=self.actor)
        return Response(VersionSerializer(archived).data)


class Diff(AboutVersion):
    scopes = {"GET": Scope.ADAPTERS_READ}

    @extend_schema(responses={200: DIFF, 202: {"type": "object"}})
    def get(self, request: Request, name: str, number: int, other: int) -> Response:
        """How version `other` differs from this one; 202 with Retry-After while a worker works it out."""
        found = services.compare_versions(self.version(number), self.version(other))
        if found is None:
            return Response({"state": "working"}, status.HTTP_202_ACCEPTED, headers={"Retry-After": "2"})
        return Response(found)


class Residency(AboutVersion):
    """Where the version is on the engine. PUT brings it to the device, DELETE sends it away."""

    scopes = {**READ_DELETE, "PUT": Scope.ADAPTERS_WRITE}
    serializer_class = PlaceSerializer

    def get(self, request: Request, name: str, number: int) -> Response:
        return Response(PlaceSerializer(services.locate(self.version(number))).data)

    @extend_schema(request=None)
    def put(self, request: Request, name: str, number: int) -> Response:
        return Response(PlaceSerializer(services.preload_version(self.version(number), actor=self.actor)).data)

    @extend_schema(responses={200: PlaceSerializer})
    def delete(self, request: Request, name: str, number: int) -> Response:
        return Response(PlaceSerializer(services.evict_version(self.version(number), actor=self.actor)).data)


class Pin(AboutVersion):
    """PUT keeps the version on the device for good, DELETE lets it make room again."""

    scopes = {"PUT": Scope.ADAPTERS_WRITE, "DELETE": Scope.ADAPTERS_WRITE}
    serializer_class = PlaceSerializer

    @extend_schema(request=None)
    def put(self, request: Request, name: str, number: int) -> Response:
        return Response(PlaceSerializer(services.pin_version(self.version(number), actor=self.actor)).data)

    @extend_schema(responses={200: PlaceSerializer})
    def delete(self, request: Request, name: str, number: int) -> Response:
        return Response(PlaceSerializer(services.unpin_version(self.version(number), actor=self.actor)).data)


class Aliases(mixins.ListModelMixin, RegistryView[Alias]):
    scopes = {"GET": Scope.ADAPTERS_READ}
    ordering = ("name",)
    serializer_class = AliasSerializer

    def get_queryset(self) -> QuerySet[Alias]:
        return self.adapter().aliases.select_related("adapter", "version")

    def get(self, request: Request, name: str) -> Response:
        return self.list(request)


class AboutAlias(RegistryView[Alias]):
    """Base of the views about one alias."""

    serializer_class: Any = OneAliasSerializer

    def alias(self, alias: str) -> Alias:
        if not re.fullmatch(NAME, alias):
            raise AdapterNotFound
        return get_object_or_404(self.adapter().aliases.select_related("adapter__tenant", "version"), name=alias)


class OneAlias(AboutAlias):
    scopes = {**READ_DELETE, "PUT": Scope.ADAPTERS_WRITE}

    def get(self, request: Request, name: str, alias: str) -> Response:
        return Response(OneAliasSerializer(self.alias(alias)).data)

    @extend_schema(request=Move)
    def put(self, request: Request, name: str, alias: str) -> Response:
        """Moves the alias from `expected` to `version`; 409 if it points elsewhere by now."""
        adapter = self.adapter()
        wanted = Move(data=request.data)
        wanted.is_valid(raise_exception=True)
        moved = services.move_alias(adapter, alias, **wanted.validated_data, actor=self.actor)
        return Response(OneAliasSerializer(moved).data)

    def delete(self, request: Request, name: str, alias: str) -> Response:
        services.delete_alias(self.alias(alias), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)


class RollbackAlias(AboutAlias):
    scopes = {"POST": Scope.ADAPTERS_WRITE}

    @extend_schema(request=Rollback)
    def post(self, request: Request, name: str, alias: str) -> Response:
        """Points the alias back to where it was moved to `expected` from; 409 if it points elsewhere by now."""
        found = self.alias(alias)
        wanted = Rollback(data=request.data)
        wanted.is_valid(raise_exception=True)
        moved = services.rollback_alias(found.adapter, alias, **wanted.validated_data, actor=self.actor)
        return Response(OneAliasSerializer(moved).data)


class AliasMoves(mixins.ListModelMixin, RegistryView[AliasMove]):
    """An alias' history, the newest first; it outlives the alias."""

    scopes = {"GET": Scope.ADAPTERS_READ}
    ordering = ("-id",)
    serializer_class = AliasMoveSerializer

    def get_queryset(self) -> QuerySet[AliasMove]:
        moves = self.adapter().alias_moves.filter(alias=self.kwargs["alias"].replace("\0", ""))
        if not moves.exists():
            raise AdapterNotFound
        return moves.select_related("from_version", "to_version")

    def get(self, request: Request, name: str, alias: str) -> Response:
        return self.list(request)


def _shown(versions: QuerySet[Version]) -> QuerySet[Version]:
    """With all that a page about a version shows."""
    return versions.select_related("adapter__tenant", "adapter__base_model").prefetch_related("aliases")


def _base_model(name: str | None) -> BaseModel | None:
    if name is None:
        return None
    base = BaseModel.objects.filter(name=name).first()
    if base is None:
        raise ValidationError({"base_model": f"There is no base model {name!r}."})
    return base


class Quotas(RegistryView[Adapter]):
    """What the tenant has and may have, what is on its way in included."""

    scopes = {"GET": Scope.ADAPTERS_READ}

    @extend_schema(responses={200: {"type": "object"}})
    def get(self, request: Request) -> Response:
        used, limits = asdict(services.usage(self.tenant)), asdict(services.limits(self.tenant))
        return Response({name: {"used": used[name], "limit": limits[name]} for name in used})
