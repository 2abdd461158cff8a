"""Serves what a tenant used. A key that is confined to some adapters sees theirs and the base model's."""

from datetime import date, timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apikeys.models import ApiKey, Scope
from audit.api import Management, Strict
from metering.models import DailyUsage, DailyUsageQuerySet, Purpose
from tenants.errors import PlatformError

LATELY = timedelta(days=30)
MOST_DAYS = 400
MOST_ROWS = 10_000
GROUPS = ("day", "key", "adapter", "purpose")


class TooMuch(PlatformError):
    code = "too_many_rows"


class Wanted(Strict):
    """`from` and `to` are days in UTC, both included."""

    to = serializers.DateField(required=False)
    group_by = serializers.CharField(default="day", max_length=64, help_text="Of day, key, adapter, purpose; commas.")
    purpose = serializers.ChoiceField(choices=Purpose.choices, required=False)
    adapter = serializers.CharField(required=False, max_length=63, allow_blank=True, help_text="Empty: the base model.")
    key = serializers.UUIDField(required=False)
    tenant = serializers.CharField(required=False)

    def get_fields(self) -> dict[str, Any]:
        return {"from": serializers.DateField(required=False), **super().get_fields()}

    def validate_group_by(self, value: str) -> list[str]:
        groups = [name.strip() for name in value.split(",") if name.strip()]
        unknown = [name for name in groups if name not in GROUPS]
        if unknown or not groups or len(set(groups)) < len(groups):
            raise serializers.ValidationError(f"Name some of {', '.join(GROUPS)}, each once.")
        return groups

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        to: date = attrs.setdefault("to", timezone.now().date())
        start: date = attrs.setdefault("from", to - LATELY)
        if not start <= to <= start + timedelta(days=MOST_DAYS):
            raise serializers.ValidationError({"from": f"Ask for 0 to {MOST_DAYS} days before `to`."})
        return attrs


class UsageRow(serializers.Serializer[Any]):
    """What it was grouped by, and the sums."""

    day = serializers.DateField(required=False)
    key = serializers.UUIDField(required=False)
    adapter = serializers.CharField(required=False, help_text="Empty: the base model.")
    purpose = serializers.ChoiceField(choices=Purpose.choices, required=False)
    requests = serializers.IntegerField()
    failed = serializers.IntegerField()
    prompt_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField(help_text="Of the prompts'.")
    completion_tokens = serializers.IntegerField()


class UsageAnswer(serializers.Serializer[Any]):
    results = UsageRow(many=True)


class Usage(Management[DailyUsage]):
    scopes = {"GET": Scope.USAGE_READ}
    serializer_class = UsageAnswer

    def get_queryset(self) -> DailyUsageQuerySet:
        own = DailyUsage.objects.for_tenant(self.tenant)
        key = self.request.auth
        return own.filter(adapter__in=["", *key.adapters]) if isinstance(key, ApiKey) and key.adapters else own

    @extend_schema(parameters=[Wanted], responses=UsageAnswer)
    def get(self, request: Request) -> Response:
        """Sums over days, at most a minute old."""
        wanted = Wanted(data=request.query_params.dict())
        wanted.is_valid(raise_exception=True)
        asked = wanted.validated_data
        chosen = Q(day__range=(asked["from"], asked["to"]))
        chosen &= Q(**{name: asked[name] for name in ("purpose", "adapter", "key") if name in asked})
        rows = list(self.get_queryset().filter(chosen).summed_by(*asked["group_by"])[: MOST_ROWS + 1])
        if len(rows) > MOST_ROWS:
            raise TooMuch(f"That is more than {MOST_ROWS} rows: ask for fewer days or groups.", param="group_by")
        return Response(UsageAnswer({"results": rows}).data)
