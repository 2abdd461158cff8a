"""Serves merges and merged models' files. A key that is confined to some adapters sees the merges of those alone."""

from typing import Any

from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status
from rest_framework.request import Request
from rest_framework.response import Response

from apikeys.models import Scope
from merges import folders, services
from merges.errors import FileNotThere, MergeNotFound
from merges.models import Kind, Merge
from merges.serializers import MergeSerializer, NewMerge
from registry.errors import AdapterNotFound
from registry.models import Adapter, Version
from registry.ranges import answer_to
from registry.views import READ_DELETE, READ_WRITE, RegistryView
from tenants.connections import let_go


class MergeView(RegistryView[Merge]):
    serializer_class = MergeSerializer

    def merges(self) -> QuerySet[Merge]:
        merges = Merge.objects.for_tenant(self.tenant).select_related("tenant", "base_model", "version__adapter")
        return merges.filter(adapters__contained_by=self.allowed) if self.allowed else merges

    def merge(self) -> Merge:
        """The one that the URL names. Raises MergeNotFound."""
        found = self.merges().filter(pk=self.kwargs["merge"]).first()
        if found is None:
            raise MergeNotFound
        return found

    def named(self, name: str) -> Adapter:
        """Raises AdapterNotFound."""
        found = self.adapters().filter(name=name).first() if name.isprintable() else None
        if found is None:
            raise AdapterNotFound
        return found

    def source(self, wanted: dict[str, Any]) -> services.Source:
        """Raises AdapterNotFound, for a version that isn't there as for an adapter."""
        versions = Version.objects.select_related("adapter__tenant", "adapter__base_model")
        found = versions.filter(adapter=self.named(wanted["adapter"]), number=wanted["version"]).first()
        if found is None:
            raise AdapterNotFound
        return services.Source(found, wanted["weight"])


class Merges(mixins.ListModelMixin, MergeView):
    scopes = READ_WRITE

    def get_queryset(self) -> QuerySet[Merge]:
        return self.merges()

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=NewMerge, responses={202: MergeSerializer})
    def post(self, request: Request) -> Response:
        wanted = NewMerge(data=request.data)
        wanted.is_valid(raise_exception=True)
        asked = wanted.validated_data
        sources = [self.source(source) for source in asked["sources"]]
        if asked["kind"] == Kind.CHECKPOINT:
            merge = services.merge_into_base(sources[0].version, actor=self.actor)
        else:
            target, method = self.named(asked["adapter"]), asked["method"]
            merge = services.merge_versions(target, sources, method=method, options=wanted.options, actor=self.actor)
        return Response(MergeSerializer(merge).data, status.HTTP_202_ACCEPTED)


class OneMerge(MergeView):
    scopes = READ_DELETE

    def get(self, request: Request, merge: str) -> Response:
        return Response(MergeSerializer(self.merge()).data)

    def delete(self, request: Request, merge: str) -> Response:
        """Deletes the merged model's files before they expire."""
        services.discard_merge(self.merge(), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)


class Cancel(MergeView):
    scopes = {"POST": Scope.ADAPTERS_WRITE}

    @extend_schema(request=None)
    def post(self, request: Request, merge: str) -> Response:
        return Response(MergeSerializer(services.cancel_merge(self.merge(), actor=self.actor)).data)


class OneFile(MergeView):
    scopes = {"GET": Scope.ADAPTERS_READ}

    @extend_schema(
        parameters=[OpenApiParameter("Range", str, OpenApiParameter.HEADER, description="One range of bytes.")],
        responses={(200, "application/octet-stream"): OpenApiTypes.BINARY},
    )
    def get(self, request: Request, merge: str, filename: str) -> HttpResponseBase:
        """A file of a merged model, or the range of it that `Range` asks for."""
        found = self.merge()
        listed = {each["name"]: each for each in found.files} if found.downloadable else {}
        path = folders.result(found.pk) / filename
        if filename not in listed or not path.is_file():
            raise FileNotThere
        answer = answer_to(request, path, listed[filename]["size"], listed[filename]["sha256"])
        if request.method != "HEAD" and "bytes 0-" in answer.headers.get("Content-Range", "bytes 0-"):
            services.record_download(found, filename, actor=self.actor)
        let_go()  # the client may read for hours
        return answer
