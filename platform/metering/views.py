"""Serves what a tenant used and may use. A key that is confined to some adapters sees theirs and the base model's."""

from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from apikeys.models import ApiKey, Scope
from audit.api import Management, Strict
from metering import services
from metering.errors import TooMuch
from metering.models import MOST, Budget, DailyUsage, DailyUsageQuerySet, Period, Purpose

LATELY = timedelta(days=30)
MOST_DAYS = 400
MOST_ROWS = 10_000
GROUPS = ("day", "key", "adapter", "purpose")


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
        start: date = attrs.setdefault("from", date.fromordinal(max(1, to.toordinal() - LATELY.days)))
        if not 0 <= (to - start).days <= MOST_DAYS:
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


class BudgetSerializer(serializers.ModelSerializer[Budget]):
    """With what the period under way has seen of it."""

    key = serializers.UUIDField(source="key_id", allow_null=True)
    used = serializers.SerializerMethodField()
    reserved = serializers.SerializerMethodField(help_text="By requests under way.")
    ends_at = serializers.SerializerMethodField()

    class Meta:
        model = Budget
        fields = ["id", "key", "period", "tokens", "imposed", "used", "reserved", "ends_at", "created_at"]
        read_only_fields = fields

    def get_used(self, budget: Budget) -> int:
        return budget.account_at(timezone.now()).used

    def get_reserved(self, budget: Budget) -> int:
        return budget.account_at(timezone.now()).reserved

    def get_ends_at(self, budget: Budget) -> datetime:
        return budget.span(timezone.now()).end


class NewBudget(Strict):
    period = serializers.ChoiceField(choices=Period.choices)
    tokens = serializers.IntegerField(min_value=1, max_value=MOST)
    key = serializers.UUIDField(default=None, allow_null=True)


class BudgetChanges(Strict):
    tokens = serializers.IntegerField(required=False, min_value=1, max_value=MOST)


class BudgetView(Management[Budget]):
    serializer_class = BudgetSerializer
    lookup_url_kwarg = "budget"

    def get_queryset(self) -> QuerySet[Budget]:
        return Budget.objects.for_tenant(self.tenant).with_accounts(timezone.now())

    @property
    def operator(self) -> bool:
        """Who belongs to no tenant; what they set is imposed."""
        return not isinstance(self.request.auth, ApiKey) or self.request.auth.tenant is None

    def shown(self, budget: Budget, code: int = status.HTTP_200_OK) -> Response:
        return Response(BudgetSerializer(self.get_queryset().get(pk=budget.pk)).data, status=code)


class Budgets(mixins.ListModelMixin, BudgetView):
    scopes = {"GET": Scope.BUDGETS_READ, "POST": Scope.BUDGETS_WRITE}

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=NewBudget, responses={201: BudgetSerializer})
    def post(self, request: Request) -> Response:
        wanted = NewBudget(data=request.data)
        wanted.is_valid(raise_exception=True)
        fields = wanted.validated_data
        budget = services.create_budget(self.tenant, **fields, imposed=self.operator, actor=self.actor)
        return self.shown(budget, status.HTTP_201_CREATED)


class OneBudget(mixins.RetrieveModelMixin, BudgetView):
    scopes = {"GET": Scope.BUDGETS_READ, "PATCH": Scope.BUDGETS_WRITE, "DELETE": Scope.BUDGETS_WRITE}

    def get(self, request: Request, budget: UUID) -> Response:
        return self.retrieve(request)

    @extend_schema(request=BudgetChanges)
    def patch(self, request: Request, budget: UUID) -> Response:
        found = self.get_object()
        wanted = BudgetChanges(data=request.data)
        wanted.is_valid(raise_exception=True)
        wish = {"tokens": found.tokens, **wanted.validated_data}
        changed = services.change_budget(found, **wish, operator=self.operator, actor=self.actor)
        return self.shown(changed)

    def delete(self, request: Request, budget: UUID) -> Response:
        services.delete_budget(self.get_object(), operator=self.operator, actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)
