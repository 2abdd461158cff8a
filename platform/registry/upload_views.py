"""Serves OpenAI's Uploads and Files, as its client speaks them, with the management plane's keys and scopes."""

import re
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response

from apikeys.models import ApiKey, Scope
from audit.api import Management
from audit.parsing import StrictForm
from registry import assembly, services
from registry.errors import UploadNotFound
from registry.intake import Upload, UploadState
from registry.quarantine import Incoming, Landing
from registry.ranges import answer_to
from registry.upload_shapes import (
    DELETED,
    FILE_FIELDS,
    Completion,
    FileList,
    FileShape,
    NewUpload,
    PartList,
    PartShape,
    UploadShape,
    form,
)
from tenants.connections import let_go

READ, WRITE = Scope.ADAPTERS_READ, Scope.ADAPTERS_WRITE
PART = 64 << 20  # bytes, as OpenAI's


def visible_uploads(view: Management[Any]) -> QuerySet[Upload]:
    """The tenant's; for a key that is confined to some adapters, what it sent itself."""
    uploads, key = Upload.objects.for_tenant(view.tenant), view.request.auth
    return uploads.filter(uploader=str(view.actor)) if isinstance(key, ApiKey) and key.adapters else uploads


class UploadView(Management[Upload]):
    serializer_class: Any = UploadShape

    def get_queryset(self) -> QuerySet[Upload]:
        return visible_uploads(self).select_related("tenant")

    def upload(self) -> Upload:
        """The one that the URL names. Raises UploadNotFound, the same for a stranger's."""
        return _found(self.get_queryset(), "upload_", self.kwargs["upload"])

    def shown(self, upload: Upload) -> Response:
        return Response(UploadShape(upload).data)


class Uploads(UploadView):
    scopes = {"POST": WRITE}

    @extend_schema(request=NewUpload)
    def post(self, request: Request) -> Response:
        wanted = NewUpload(data=request.data)
        wanted.is_valid(raise_exception=True)
        return self.shown(services.create_upload(self.tenant, **wanted.fields_of_upload(), actor=self.actor))


class OneUpload(UploadView):
    scopes = {"GET": READ}

    def get(self, request: Request, upload: str) -> Response:
        """How far it is: `received_bytes` of `bytes`, and the parts by `…/parts`."""
        return self.shown(self.upload())


class IntoQuarantine:
    """A view that reads a form's files straight into the quarantine. What it admits none of goes with the answer."""

    limit: int | None = None

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        incoming = Incoming(request, self.limit)
        request.upload_handlers = [incoming]
        try:
            return super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
        finally:
            incoming.end()


class Receiving(IntoQuarantine, UploadView):
    """Takes one file of a form."""

    parser_classes = [StrictForm]
    field: str

    def received(self, request: Request) -> Landing:
        files = request.FILES.getlist(self.field)
        if len(files) != 1 or len(request.FILES) != 1 or not isinstance(files[0], Landing):
            raise ValidationError({self.field: "Send one file under this name."})
        files[0].flush()
        return files[0]


class Parts(Receiving):
    scopes = {"GET": READ, "POST": WRITE}
    limit = PART
    field = "data"

    @extend_schema(responses=PartList)
    def get(self, request: Request, upload: str) -> Response:
        return Response(PartList(self.upload()).data)

    @extend_schema(request=form({}, field), responses=PartShape)
    def post(self, request: Request, upload: str) -> Response:
        part = services.add_part(self.upload(), self.received(request))
        return Response(PartShape(part).data)


class Complete(UploadView):
    scopes = {"POST": WRITE}

    @extend_schema(request=Completion)
    def post(self, request: Request, upload: str) -> Response:
        found = self.upload()
        wanted = Completion(data=request.data)
        wanted.is_valid(raise_exception=True)
        return self.shown(services.complete_upload(found, **wanted.validated_data, actor=self.actor))


class Cancel(UploadView):
    scopes = {"POST": WRITE}

    @extend_schema(request=None)
    def post(self, request: Request, upload: str) -> Response:
        return self.shown(services.cancel_upload(self.upload(), actor=self.actor))


class FileView(UploadView):
    serializer_class = FileShape

    def file(self) -> Upload:
        """A completed upload, until it is dropped. Raises UploadNotFound."""
        return _found(self.files(), "file-", self.kwargs["file"])

    def files(self) -> QuerySet[Upload]:
        return self.get_queryset().filter(state__in=[UploadState.COMPLETED, UploadState.USED])


class Files(FileView, Receiving):
    scopes = {"GET": READ, "POST": WRITE}
    field = "file"

    @extend_schema(operation_id="v1_files_list", responses=FileList)
    def get(self, request: Request) -> Response:
        return Response(FileList.page(self.files(), request.query_params))

    @extend_schema(request=form(FILE_FIELDS, field))
    def post(self, request: Request) -> Response:
        received = self.received(request)
        fields = {name: value for name, value in request.POST.items() if name != self.field}
        about = {"filename": received.name, "bytes": received.size, "mime_type": received.content_type or ""}
        wanted = NewUpload(data={**fields, **about})
        wanted.is_valid(raise_exception=True)
        file = services.receive_file(self.tenant, received, **wanted.fields_of_upload(), actor=self.actor)
        return Response(FileShape(file).data)


class OneFile(FileView):
    scopes = {"GET": READ, "DELETE": WRITE}

    def get(self, request: Request, file: str) -> Response:
        return Response(FileShape(self.file()).data)

    @extend_schema(responses={200: DELETED})
    def delete(self, request: Request, file: str) -> Response:
        dropped = services.drop_file(self.file(), actor=self.actor)
        return Response({"id": dropped.file_id, "object": "file", "deleted": True})


class AnyKind(DefaultContentNegotiation):
    """The bytes are what they are, whatever the client says that it accepts."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class Content(FileView):
    scopes = {"GET": READ}
    content_negotiation_class = AnyKind

    @extend_schema(
        parameters=[OpenApiParameter("Range", str, OpenApiParameter.HEADER, description="One range of bytes.")],
        responses={(200, "application/octet-stream"): OpenApiTypes.BINARY},
    )
    def get(self, request: Request, file: str) -> Any:
        """The file, or the range of it that `Range` asks for."""
        found = self.file()
        path = assembly.whole(found.pk)
        if not path.is_file():
            raise UploadNotFound
        let_go()  # the client may read for hours
        return answer_to(request, path, path.stat().st_size, found.sha256)


def _found(uploads: QuerySet[Upload], prefix: str, public_id: str) -> Upload:
    match = re.fullmatch(prefix + "([0-9a-f]{32})", public_id)
    upload = uploads.filter(pk=UUID(match[1])).first() if match else None
    if upload is None:
        raise UploadNotFound
    return upload
