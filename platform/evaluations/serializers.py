"""Evaluation sets, evaluations and scores as the management API shows and takes them."""

from typing import Any

from rest_framework import serializers

from audit.api import Strict
from evaluations.models import Evaluation, EvaluationSet, Result
from registry.models import NAME


class SetSerializer(serializers.ModelSerializer[EvaluationSet]):
    class Meta:
        model = EvaluationSet
        fields = ["id", "name", "digest", "measure", "count", "size", "uploader", "created_at"]
        read_only_fields = fields


class ScoreSerializer(serializers.Serializer[Any]):
    """The mean over `n` items, and the interval that holds the true one with 95 % confidence."""

    mean = serializers.FloatField(read_only=True)
    low = serializers.FloatField(read_only=True)
    high = serializers.FloatField(read_only=True)
    n = serializers.IntegerField(read_only=True)


class EvaluationSerializer(serializers.ModelSerializer[Evaluation]):
    set = serializers.CharField(source="set.name", read_only=True)
    measure = serializers.CharField(source="set.measure", read_only=True)
    total = serializers.IntegerField(source="set.count", read_only=True, help_text="Items to do.")
    score = ScoreSerializer(read_only=True, allow_null=True)

    class Meta:
        model = Evaluation
        fields = [
            "id", "set", "measure", "model", "state", "done", "total", "score", "error",
            "creator", "created_at", "started_at", "finished_at",
        ]  # fmt: skip
        read_only_fields = fields


class NewEvaluation(Strict):
    set = serializers.CharField(max_length=63, help_text="An evaluation set's name.")
    model = serializers.CharField(max_length=512, help_text="As requests name models; an alias means what it does now.")


class ResultSerializer(serializers.ModelSerializer[Result]):
    line = serializers.IntegerField(source="item.number", read_only=True, help_text="Of the set's file, from 1.")
    scorer = serializers.CharField(source="item.scorer", read_only=True)

    class Meta:
        model = Result
        fields = ["line", "scorer", "value", "answer", "tokens", "note"]
        read_only_fields = fields


class CellSerializer(ScoreSerializer):
    evaluation = serializers.UUIDField(read_only=True)
    finished_at = serializers.DateTimeField(read_only=True)


class RowSerializer(serializers.Serializer[Any]):
    model = serializers.CharField(read_only=True)
    version = serializers.IntegerField(read_only=True, allow_null=True)
    scores = serializers.DictField(child=CellSerializer(), read_only=True, help_text="By set.")


class ComparisonSerializer(serializers.Serializer[Any]):
    """Every set, and every model's newest score on those it has been through."""

    sets = SetSerializer(many=True, read_only=True)
    models = RowSerializer(many=True, read_only=True)


SET_REQUEST = {
    "multipart/form-data": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 63, "pattern": NAME.replace(r"\Z", "$")},
            "file": {
                "type": "string",
                "format": "binary",
                "description": "JSON Lines: messages, expected, scorer, max_tokens (optional).",
            },
        },
        "required": ["name", "file"],
        "additionalProperties": False,
    }
}
