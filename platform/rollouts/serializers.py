"""Rollouts as the management API shows and takes them. Weights are percentages there, of 10,000 units in the tables."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from audit.api import Strict
from registry.models import STABLE
from rollouts.models import Look, OnNew, Rollout, Step, Unit
from rollouts.services import Plan, PlannedStep
from rollouts.services.figures import figures

PERCENT = 100  # of 10,000 units
LONGEST = 90 * 24 * 60 * 60  # seconds


class StepSerializer(serializers.ModelSerializer[Step]):
    weight = serializers.SerializerMethodField(help_text="Percent.")

    class Meta:
        model = Step
        fields = [
            "number", "shadow", "weight", "min_seconds", "min_samples", "max_seconds", "gate", "entered_at", "look",
        ]  # fmt: skip
        read_only_fields = fields

    def get_weight(self, step: Step) -> float:
        return step.weight / PERCENT


class LookSerializer(serializers.ModelSerializer[Look]):
    class Meta:
        model = Look
        fields = ["number", "step", "kind", "reasons", "figures", "at"]
        read_only_fields = fields


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    adapter = serializers.CharField(source="adapter.name", read_only=True)
    stable = serializers.IntegerField(source="stable.number", read_only=True)
    canary = serializers.IntegerField(source="canary.number", read_only=True)
    weight = serializers.SerializerMethodField(help_text="Percent of the units that the canary serves now.")
    copies = serializers.SerializerMethodField(help_text="Percent of the units that are copied to the canary now.")

    class Meta:
        model = Rollout
        fields = [
            "id", "adapter", "alias", "stable", "canary", "state", "step", "weight", "copies", "unit", "on_new",
            "guardrails", "schema", "evaluation", "override", "pause", "cause", "reasons", "looks", "maker",
            "created_at", "changed_at", "started_at", "entered_at", "ended_at",
        ]  # fmt: skip
        read_only_fields = fields

    def get_weight(self, rollout: Rollout) -> float:
        return rollout.weight / PERCENT

    def get_copies(self, rollout: Rollout) -> float:
        return rollout.copies / PERCENT


class RolloutDetail(RolloutSerializer):
    steps = StepSerializer(many=True, read_only=True)
    arms = serializers.SerializerMethodField(help_text="Either arm's figures in its step, some seconds old.")
    verdict = serializers.SerializerMethodField(help_text="The last one; all are under `verdicts`.")

    class Meta(RolloutSerializer.Meta):
        fields = [*RolloutSerializer.Meta.fields, "steps", "arms", "verdict"]
        read_only_fields = fields

    @extend_schema_field({"type": "object", "additionalProperties": {"type": "object"}})
    def get_arms(self, rollout: Rollout) -> dict[str, Any]:
        return figures(rollout)

    @extend_schema_field(LookSerializer)
    def get_verdict(self, rollout: Rollout) -> dict[str, Any] | None:
        last = rollout.history.first()
        return dict(LookSerializer(last).data) if last else None


class NewStep(Strict):
    weight = serializers.FloatField(min_value=0.01, max_value=100, help_text="Percent.")
    shadow = serializers.BooleanField(default=False)
    min_seconds = serializers.IntegerField(default=300, min_value=0, max_value=LONGEST)
    min_samples = serializers.IntegerField(default=100, min_value=0, max_value=10**9)
    max_seconds = serializers.IntegerField(default=None, allow_null=True, min_value=1, max_value=LONGEST)
    gate = serializers.BooleanField(default=False, help_text="A person has to approve before it goes on.")


class NewRollout(Strict):
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    alias = serializers.CharField(default=STABLE, max_length=63)
    steps = serializers.ListField(child=NewStep(), required=False, min_length=1, max_length=20)
    guardrails = serializers.ListField(child=serializers.DictField(), default=list, max_length=20)
    schema = serializers.DictField(default=None, allow_null=True, help_text="JSON Schema that answers should fit.")
    evaluation = serializers.CharField(default="", allow_blank=True, max_length=63)
    unit = serializers.ChoiceField(choices=Unit.choices, default=Unit.AUTO)
    on_new = serializers.ChoiceField(choices=OnNew.choices, default=OnNew.REFUSE)
    override = serializers.BooleanField(default=False, help_text="Try a version that was rolled back before.")
    start = serializers.BooleanField(default=True, help_text="False: a draft.")

    def plan(self) -> Plan:
        """Call it when valid."""
        told = {name: value for name, value in self.validated_data.items() if name not in ("start", "steps")}
        steps = self.validated_data.get("steps")
        if steps is None:
            return Plan(**told)
        return Plan(**told, steps=[_planned(step) for step in steps])


class Reason(Strict):
    reason = serializers.CharField(default="", allow_blank=True, max_length=500)


def _planned(step: dict[str, Any]) -> PlannedStep:
    return PlannedStep(**{**step, "weight": round(step["weight"] * PERCENT)})
