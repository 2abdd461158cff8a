"""Merges as the management API shows and takes them."""

from typing import Any

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from audit.api import Strict
from merges.models import Kind, Merge, Method


class NewSource(Strict):
    adapter = serializers.CharField(max_length=63)
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    weight = serializers.FloatField(default=1.0, min_value=-100, max_value=100)

    def validate_weight(self, weight: float) -> float:
        if not -100 <= weight <= 100 or abs(weight) < 1e-6:  # NaN is no weight either
            raise serializers.ValidationError("A number from -100 to 100 other than 0.")
        return weight


class NewMerge(Strict):
    kind = serializers.ChoiceField(Kind.choices)
    sources = NewSource(many=True, help_text="One version to be merged into its base model, or 2 to 16 to be combined.")
    adapter = serializers.CharField(max_length=63, required=False, help_text="What the new version is of.")
    method = serializers.ChoiceField(Method.choices, required=False)
    density = serializers.FloatField(required=False, help_text="ties and DARE: the part of elements that is kept.")
    rank = serializers.IntegerField(required=False, min_value=1, max_value=256, help_text="svd: of the new version.")
    majority_sign = serializers.ChoiceField(
        ["total", "frequency"], required=False, help_text="ties: how it is elected."
    )
    seed = serializers.IntegerField(required=False, min_value=0, max_value=2**63 - 1, help_text="DARE: of its draws.")

    ONLY_WITH = {
        "density": {Method.TIES, Method.DARE_LINEAR, Method.DARE_TIES},
        "rank": {Method.SVD},
        "majority_sign": {Method.TIES, Method.DARE_TIES},
        "seed": {Method.DARE_LINEAR, Method.DARE_TIES},
    }

    def validate_density(self, density: float) -> float:
        if not 0 < density <= 1:
            raise serializers.ValidationError("Above 0, and at most 1.")
        return density

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["kind"] == Kind.CHECKPOINT:
            beside = sorted(set(attrs) - {"kind", "sources"})
            if beside:
                raise serializers.ValidationError({beside[0]: "Not for a checkpoint."})
            if len(attrs["sources"]) != 1 or attrs["sources"][0]["weight"] != 1:
                raise serializers.ValidationError({"sources": "One version, without a weight."})
            return attrs
        for name in ("adapter", "method"):
            if name not in attrs:
                raise serializers.ValidationError({name: "Required for a version."})
        for name, methods in self.ONLY_WITH.items():
            if name in attrs and attrs["method"] not in methods:
                raise serializers.ValidationError({name: f"Not for {attrs['method']}."})
        if attrs["method"] in self.ONLY_WITH["density"] and "density" not in attrs:
            raise serializers.ValidationError({"density": f"Required for {attrs['method']}."})
        return attrs

    @property
    def options(self) -> dict[str, Any]:
        return {name: self.validated_data[name] for name in self.ONLY_WITH if name in self.validated_data}


class SourceShown(serializers.Serializer[Any]):
    name = serializers.CharField()
    digest = serializers.CharField()
    weight = serializers.FloatField()


class FileShown(serializers.Serializer[Any]):
    name = serializers.CharField()
    size = serializers.IntegerField()
    sha256 = serializers.CharField()
    url = serializers.CharField()


class MergeSerializer(serializers.ModelSerializer[Merge]):
    base_model = serializers.SlugRelatedField[Merge](slug_field="name", read_only=True)
    sources = SourceShown(many=True)
    result = serializers.SerializerMethodField(help_text="The new version, once it was handed in for validation.")
    files = serializers.SerializerMethodField(help_text="The merged model's, until it expires.")

    class Meta:
        model = Merge
        fields = [
            "id", "kind", "state", "stage", "progress", "base_model", "sources", "method", "options", "result", "files",
            "size", "agreement", "finding", "requester", "created_at", "finished_at", "expires_at",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field({"type": "object", "nullable": True, "additionalProperties": True})
    def get_result(self, merge: Merge) -> dict[str, Any] | None:
        version = merge.version
        if version is None:
            return None
        return {"adapter": version.adapter.name, "version": f"v{version.number}", "state": version.state}

    @extend_schema_field(FileShown(many=True))
    def get_files(self, merge: Merge) -> list[dict[str, Any]]:
        if not merge.downloadable:
            return []
        return [{**file, "url": reverse("merges:file", args=[merge.pk, file["name"]])} for file in merge.files]
