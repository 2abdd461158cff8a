"""The registry's objects as the management API shows and takes them."""

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from audit.api import Strict
from registry.models import Adapter, Alias, Version


class AdapterSerializer(serializers.ModelSerializer[Adapter]):
    tenant = serializers.SlugRelatedField[Adapter](slug_field="slug", read_only=True)
    base_model = serializers.SlugRelatedField[Adapter](slug_field="name", read_only=True)
    aliases = serializers.SerializerMethodField(help_text="Alias to version number.")

    class Meta:
        model = Adapter
        fields = ["id", "tenant", "name", "base_model", "aliases", "created_at"]
        read_only_fields = fields

    @extend_schema_field({"type": "object", "additionalProperties": {"type": "integer"}})
    def get_aliases(self, adapter: Adapter) -> dict[str, int]:
        return {alias.name: alias.version.number for alias in adapter.aliases.all()}


class NewAdapter(Strict):
    name = serializers.CharField(max_length=63)
    base_model = serializers.CharField(max_length=255, required=False, help_text="Default: the one that is served.")


class FindingShape(serializers.Serializer[dict[str, str]]):
    """One reason for a refusal, as adapters.errors.Finding has it."""

    rule = serializers.CharField(help_text="Stable, in kebab-case.")
    severity = serializers.ChoiceField(choices=["error", "note"], default="error")
    message = serializers.CharField(help_text="One sentence for a person.")
    tensor = serializers.CharField(default="")
    expected = serializers.CharField(default="")
    found = serializers.CharField(default="")


class VersionSerializer(serializers.ModelSerializer[Version]):
    adapter = serializers.CharField(source="adapter.name", read_only=True)
    findings = FindingShape(many=True, read_only=True)
    version = serializers.SerializerMethodField()

    class Meta:
        model = Version
        fields = [
            "id", "adapter", "version", "number", "state", "digest", "size",
            "summary", "findings", "signed_by", "uploader", "created_at", "changed_at",
        ]  # fmt: skip
        read_only_fields = fields

    def get_version(self, version: Version) -> str:
        return f"v{version.number}"


class AliasSerializer(serializers.ModelSerializer[Alias]):
    adapter = serializers.CharField(source="adapter.name", read_only=True)
    version = serializers.IntegerField(source="version.number", read_only=True)

    class Meta:
        model = Alias
        fields = ["adapter", "name", "version", "moved_at"]
        read_only_fields = fields


class AliasMove(Strict):
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    expected = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, allow_null=True, help_text="Where it points now; null: it does not exist yet."
    )


SIGNED = "ed25519 over the digest, in base64; needed where the tenant requires it."


class FromFiles(Strict):
    """A version out of files that were uploaded before."""

    files = serializers.ListField(
        child=serializers.RegexField(r"^(file-|upload_)[0-9a-f]{32}\Z"),
        min_length=1,
        max_length=8,
        help_text="Ids of complete uploads: the two files, or one archive of them.",
    )
    signature = serializers.CharField(required=False, max_length=88, help_text=SIGNED)


UPLOAD_REQUEST = {
    "application/json": FromFiles,
    "multipart/form-data": {
        "type": "object",
        "description": "adapter_config.json and adapter_model.safetensors, or one .zip or .tar.gz of them.",
        "additionalProperties": {"type": "string", "format": "binary"},
    },
}
