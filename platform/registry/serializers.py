"""The registry's objects as the management API shows and takes them."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from audit.api import Strict
from registry.models import Adapter, Alias, AliasMove, Version
from registry.services import Place, previous
from registry.services.versions import METRICS, NOTES


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


class FindingShape(serializers.Serializer[dict[str, Any]]):
    """One thing to say of an upload, as adapters.errors.Finding has it."""

    rule = serializers.CharField(help_text="Stable, in kebab-case.")
    severity = serializers.ChoiceField(choices=["error", "warning", "note"], default="error")
    message = serializers.CharField(help_text="One sentence for a person.")
    tensor = serializers.CharField(default="", help_text="The tensor or module; of several, which, in short.")
    count = serializers.IntegerField(default=1, help_text="Of how many tensors or modules this is said.")
    expected = serializers.CharField(default="")
    found = serializers.CharField(default="")


class VersionSerializer(serializers.ModelSerializer[Version]):
    adapter = serializers.CharField(source="adapter.name", read_only=True)
    findings = FindingShape(many=True, read_only=True)
    version = serializers.SerializerMethodField()
    base_model = serializers.CharField(source="adapter.base_model.name", read_only=True)
    target_modules = serializers.SerializerMethodField(help_text="The last parts of the changed modules' names.")
    ranks = serializers.SerializerMethodField(help_text="The least and the greatest; null until it is ready.")
    aliases = serializers.SerializerMethodField(help_text="Those that point to it now.")

    class Meta:
        model = Version
        fields = [
            "id", "adapter", "version", "number", "state", "digest", "size", "base_model", "target_modules", "ranks",
            "summary", "findings", "aliases", "notes", "metrics", "pinned_at", "signed_by", "uploader",
            "created_at", "changed_at",
        ]  # fmt: skip
        read_only_fields = fields

    def get_version(self, version: Version) -> str:
        return f"v{version.number}"

    @extend_schema_field({"type": "array", "items": {"type": "string"}})
    def get_target_modules(self, version: Version) -> list[str]:
        return list(version.summary.get("targets", []))

    @extend_schema_field({"type": "array", "items": {"type": "integer"}, "nullable": True})
    def get_ranks(self, version: Version) -> list[int] | None:
        summary = version.summary
        return [summary["rank_min"], summary["rank_max"]] if summary else None

    @extend_schema_field({"type": "array", "items": {"type": "string"}})
    def get_aliases(self, version: Version) -> list[str]:
        return [alias.name for alias in version.aliases.all()]


class Annotations(Strict):
    notes = serializers.CharField(max_length=NOTES, allow_blank=True, required=False)
    metrics = serializers.DictField(required=False, help_text=f"A JSON object of {METRICS:,} bytes at most.")


class PlaceSerializer(serializers.Serializer[Place]):
    state = serializers.ChoiceField(["resident", "loading", "draining", "absent"], help_text="On the device.")
    tier = serializers.ChoiceField(["device", "host", "disk", "store"], help_text="The nearest that has it whole.")
    bytes = serializers.IntegerField(help_text="On the device.")
    pinned = serializers.BooleanField(help_text="It is wanted to stay.")
    held = serializers.BooleanField(help_text="The engine knows that it is to stay.")


class AliasSerializer(serializers.ModelSerializer[Alias]):
    adapter = serializers.CharField(source="adapter.name", read_only=True)
    version = serializers.IntegerField(source="version.number", read_only=True)

    class Meta:
        model = Alias
        fields = ["adapter", "name", "version", "moved_at"]
        read_only_fields = fields


class OneAliasSerializer(AliasSerializer):
    previous = serializers.SerializerMethodField(help_text="Where a rollback would lead; null: nowhere.")

    class Meta(AliasSerializer.Meta):
        fields = [*AliasSerializer.Meta.fields, "previous"]
        read_only_fields = fields

    def get_previous(self, alias: Alias) -> int | None:
        version = previous(alias)
        return version.number if version else None


class AliasMoveSerializer(serializers.ModelSerializer[AliasMove]):
    from_version = serializers.IntegerField(source="from_version.number", default=None, read_only=True, allow_null=True)
    to_version = serializers.IntegerField(source="to_version.number", default=None, read_only=True, allow_null=True)

    class Meta:
        model = AliasMove
        fields = ["alias", "kind", "from_version", "to_version", "actor", "reason", "at"]
        read_only_fields = fields


class Rollback(Strict):
    expected = serializers.IntegerField(min_value=1, max_value=2**31 - 1, help_text="Where it points now.")
    reason = serializers.CharField(max_length=500, allow_blank=True, default="")


class Move(Strict):
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    expected = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, allow_null=True, help_text="Where it points now; null: it does not exist yet."
    )
    reason = serializers.CharField(max_length=500, allow_blank=True, default="")


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
PAIR: dict[str, Any] = {"type": "array", "minItems": 2, "maxItems": 2, "description": "Of the one, of the other."}
DIFF = {
    "type": "object",
    "properties": {
        "versions": {**PAIR, "items": {"type": "integer"}},
        "config": {"type": "object", "additionalProperties": PAIR, "description": "Fields that differ."},
        "summary": {"type": "object", "additionalProperties": PAIR},
        "metrics": {"type": "object", "additionalProperties": PAIR},
        "norms": {**PAIR, "items": {"type": "number"}},
        "difference": {"type": "number", "description": "Norm of the one's change less the other's."},
        "scores": {
            "type": "object",
            "description": "By evaluation set: both newest scores, and the mean of the items' differences.",
            "additionalProperties": {
                "type": "object",
                "properties": {"scores": PAIR, "difference": {"type": "object", "nullable": True}},
            },
        },
        "modules": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "module": {"type": "string"},
                    "ranks": PAIR,
                    "norms": PAIR,
                    "difference": {"type": "number"},
                    "beside": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}
