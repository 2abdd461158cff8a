"""Uploads, parts and files in OpenAI's shapes (its API reference, "Uploads" and "Files"); what is ours is said so."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from audit.api import Strict
from registry.intake import Part, Purpose, Upload, UploadState

LONGEST_KEPT = 30 * 24 * 3600  # seconds
STATUS = {UploadState.USED: UploadState.COMPLETED, UploadState.DROPPED: UploadState.COMPLETED}
MOST_FILES = 10_000


class Expiry(Strict):
    anchor = serializers.ChoiceField(choices=["created_at"])
    seconds = serializers.IntegerField(min_value=3600, max_value=LONGEST_KEPT)


class NewUpload(Strict):
    filename = serializers.CharField(max_length=255)
    purpose = serializers.ChoiceField(choices=Purpose.choices)
    bytes = serializers.IntegerField(min_value=1, max_value=2**62)
    mime_type = serializers.CharField(max_length=255, required=False, allow_blank=True)
    expires_after = Expiry(required=False, help_text="How long the complete file is kept for a version to take it.")

    def fields_of_upload(self) -> dict[str, Any]:
        fields = dict(self.validated_data)
        kept = fields.pop("expires_after", None)
        return {**fields, "keep_seconds": kept and kept["seconds"]}


DELETED = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "object": {"type": "string"}, "deleted": {"type": "boolean"}},
    "required": ["id", "object", "deleted"],
}
FILE_FIELDS = {"purpose": {"type": "string", "enum": list(Purpose.values)}}


def form(fields: Mapping[str, Any], file: str) -> dict[str, Any]:
    """A form of these fields and one file, for the OpenAPI page."""
    properties = {**fields, file: {"type": "string", "format": "binary"}}
    shape = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"multipart/form-data": shape}


class Completion(Strict):
    part_ids = serializers.ListField(child=serializers.CharField(max_length=64), min_length=1, max_length=10_000)
    md5 = serializers.RegexField(r"^[0-9a-fA-F]{32}\Z", required=False)
    sha256 = serializers.RegexField(r"^[0-9a-fA-F]{64}\Z", required=False, help_text="Ours: a checksum that holds.")


class Unix(serializers.IntegerField):
    """A moment in whole seconds, as OpenAI has it."""

    def to_representation(self, value: Any) -> int:
        return int(value.timestamp())


class FileShape(serializers.Serializer[Upload]):
    id = serializers.CharField(source="file_id")
    object = serializers.CharField(default="file")
    bytes = serializers.IntegerField()
    created_at = Unix()
    expires_at = Unix(source="file_expires_at", allow_null=True)
    filename = serializers.CharField()
    purpose = serializers.CharField()
    status = serializers.SerializerMethodField(help_text="`processed` once a version took it.")
    sha256 = serializers.CharField(help_text="Ours.")

    def get_status(self, upload: Upload) -> str:
        return "processed" if upload.state == UploadState.USED else "uploaded"


class UploadShape(serializers.Serializer[Upload]):
    id = serializers.CharField(source="public_id")
    object = serializers.CharField(default="upload")
    bytes = serializers.IntegerField(help_text="As announced.")
    created_at = Unix()
    expires_at = Unix()
    filename = serializers.CharField()
    purpose = serializers.CharField()
    status = serializers.SerializerMethodField()
    file = serializers.SerializerMethodField()
    received_bytes = serializers.IntegerField(source="received", help_text="Ours: how far it is.")

    def get_status(self, upload: Upload) -> str:
        return STATUS.get(UploadState(upload.state), UploadState(upload.state)).value

    @extend_schema_field(FileShape(allow_null=True))
    def get_file(self, upload: Upload) -> Any:
        complete = upload.state in (UploadState.COMPLETED, UploadState.USED)
        return FileShape(upload).data if complete else None


class PartShape(serializers.Serializer[Part]):
    id = serializers.CharField(source="public_id")
    object = serializers.CharField(default="upload.part")
    created_at = Unix()
    upload_id = serializers.CharField(source="upload.public_id")
    bytes = serializers.IntegerField(source="size", help_text="Ours.")
    sha256 = serializers.CharField(help_text="Ours.")


class PartList(serializers.Serializer[Upload]):
    """Ours: what has arrived, for a client that goes on where it was cut off."""

    object = serializers.CharField(default="list")
    data: Any = PartShape(source="parts.all", many=True)


class FileQuery(Strict):
    purpose = serializers.CharField(required=False, max_length=64)
    limit = serializers.IntegerField(required=False, min_value=1, max_value=MOST_FILES, default=1000)
    order = serializers.ChoiceField(choices=["asc", "desc"], required=False, default="desc")
    after = serializers.RegexField(r"^file-[0-9a-f]{32}\Z", required=False)
    tenant = serializers.CharField(required=False)


class FileList(serializers.Serializer[Any]):
    object = serializers.CharField()
    data: Any = FileShape(many=True)
    first_id = serializers.CharField(allow_null=True)
    last_id = serializers.CharField(allow_null=True)
    has_more = serializers.BooleanField()

    @staticmethod
    def page(files: QuerySet[Upload], query: Mapping[str, Any]) -> dict[str, Any]:
        """One page of the files, as the query asks. After a file that is none of them, nothing follows."""
        wanted = FileQuery(data=dict(query.items()))
        wanted.is_valid(raise_exception=True)
        ask, signs = wanted.validated_data, {"asc": ("", "gt"), "desc": ("-", "lt")}
        sign, beyond = signs[ask["order"]]
        if "purpose" in ask:
            files = files.filter(purpose=ask["purpose"])
        if "after" in ask:
            last = files.filter(pk=UUID(ask["after"].removeprefix("file-"))).first()
            files = files.filter(_beyond(last, beyond)) if last else files.none()
        rows = list(files.order_by(f"{sign}created_at", f"{sign}id")[: ask["limit"] + 1])
        shown = rows[: ask["limit"]]
        return {
            "object": "list",
            "data": [FileShape(row).data for row in shown],
            "first_id": shown[0].file_id if shown else None,
            "last_id": shown[-1].file_id if shown else None,
            "has_more": len(rows) > len(shown),
        }


def _beyond(row: Upload, way: str) -> Q:
    later: dict[str, Any] = {f"created_at__{way}": row.created_at}
    level: dict[str, Any] = {"created_at": row.created_at, f"id__{way}": row.pk}
    return Q(**later) | Q(**level)
