"""Serves a tenant's events, newest first."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from audit.api import Management, Strict
from audit.models import Action, Event


class EventSerializer(serializers.ModelSerializer[Event]):
    actor = serializers.SerializerMethodField()

    class Meta:
        model = Event
        fields = [
            "number", "action", "actor", "address", "request_id", "target", "data",
            "created_at", "previous", "hash",
        ]  # fmt: skip

    def get_actor(self, event: Event) -> str:
        return f"{event.actor_kind}:{event.actor_id}"


class Query(Strict):
    """What events can be asked for by; `target` also finds what belongs to it (`acme/support` its versions)."""

    action = serializers.ChoiceField(choices=Action.choices, required=False)
    actor = serializers.CharField(required=False, help_text="As shown: kind:id.")
    target = serializers.CharField(required=False)
    request_id = serializers.CharField(required=False)
    since = serializers.DateTimeField(required=False)
    until = serializers.DateTimeField(required=False)
    tenant = serializers.CharField(required=False)
    cursor = serializers.CharField(required=False)
    limit = serializers.IntegerField(required=False)


class Events(mixins.ListModelMixin, Management[Event]):
    """The tenant's audit events; for an operator who names no tenant, the platform's own."""

    scopes = {"GET": "audit:read"}
    needs_tenant = False
    ordering = ("-id",)
    serializer_class = EventSerializer

    def get_queryset(self) -> QuerySet[Event]:
        events = Event.objects.for_tenant(self.tenant)
        query = Query(data=self.request.query_params.dict())
        query.is_valid(raise_exception=True)
        return _matching(events, query.validated_data)

    @extend_schema(parameters=[Query])
    def get(self, request: Request) -> Response:
        return self.list(request)


def _matching(events: QuerySet[Event], wanted: dict[str, Any]) -> QuerySet[Event]:
    lookups = {"action": "action", "request_id": "request_id", "target": "target__startswith"}
    lookups |= {"since": "created_at__gte", "until": "created_at__lt"}
    events = events.filter(**{lookups[name]: value for name, value in wanted.items() if name in lookups})
    if "actor" in wanted:
        kind, _, pk = wanted["actor"].partition(":")
        events = events.filter(actor_kind=kind, actor_id=pk)
    return events
