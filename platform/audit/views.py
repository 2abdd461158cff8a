"""Serves a tenant's events, what proves them, and what is wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from django.db import connection
from django.db.models import QuerySet
from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.exceptions import Throttled
from rest_framework.request import Request
from rest_framework.response import Response

from audit import exports, signing
from audit.api import Cursor, Management, Strict
from audit.models import PLATFORM_CHAIN, Action, Chain, Event, Leaf
from audit.verification import verify

READ = "audit:read"


class EventSerializer(serializers.ModelSerializer[Event]):
    actor = serializers.SerializerMethodField()

    class Meta:
        model = Event
        fields = [
            "number", "action", "actor", "address", "user_agent", "request_id", "target", "data",
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
    limit = serializers.IntegerField(required=False, min_value=1, max_value=Cursor.max_page_size)


class Page(Strict):
    after = serializers.IntegerField(
        default=0, min_value=0, help_text="The number of the last event of the page before."
    )
    limit = serializers.IntegerField(default=exports.PAGE, min_value=1, max_value=exports.PAGE)
    tenant = serializers.CharField(required=False)


class ProblemSerializer(serializers.Serializer[Any]):
    chain = serializers.CharField()
    number = serializers.IntegerField()
    kind = serializers.CharField()
    message = serializers.CharField()


class VerificationSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField()
    events = serializers.IntegerField()
    problems = ProblemSerializer(many=True)


class PublicKeySerializer(serializers.Serializer[Any]):
    algorithm = serializers.CharField()
    public_key = serializers.CharField(help_text="32 bytes in base64.")


class LeafSerializer(serializers.ModelSerializer[Leaf]):
    checkpoint = serializers.DictField(source="checkpoint.content")
    signature = serializers.CharField(source="checkpoint.signature")
    key = serializers.CharField(source="checkpoint.key")

    class Meta:
        model = Leaf
        fields = ["length", "head", "checkpoint", "signature", "key"]


class Events(mixins.ListModelMixin, Management[Event]):
    """The tenant's audit events; for an operator who names no tenant, the platform's own."""

    scopes = {"GET": READ}
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


class Verify(Management[Event]):
    """Reads the tenant's whole chain and tells of whatever was done to it; for an operator who names none, all chains.

    One at a time per tenant, since it costs what the chain is long: the next is told to come back.
    """

    scopes = {"GET": READ}
    needs_tenant = False

    @extend_schema(responses=VerificationSerializer)
    def get(self, request: Request) -> Response:
        with _alone(str(self.tenant.pk) if self.tenant else "all"):
            problems = verify(self.tenant)
        chains = Chain.objects.filter(pk=self.tenant.pk) if self.tenant else Chain.objects.all()
        found = [asdict(problem) for problem in problems]
        return Response({"ok": not found, "events": sum(chain.length for chain in chains), "problems": found})


class Export(Management[Event]):
    """Events as JSON Lines with a proof, which `platform/audit/proof.py` verifies without us. Comes in pages."""

    scopes = {"GET": READ}
    needs_tenant = False

    @extend_schema(parameters=[Page], responses={(200, "application/jsonl"): str})
    def get(self, request: Request) -> HttpResponse:
        wanted = Page(data=request.query_params.dict())
        wanted.is_valid(raise_exception=True)
        chain = _chain_of(self.tenant)
        lines = exports.page(chain, wanted.validated_data["after"], wanted.validated_data["limit"])
        name = f"audit-{self.tenant.slug if self.tenant else 'platform'}.jsonl"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return HttpResponse("".join(lines), content_type="application/jsonl", headers=headers)


class Checkpoints(mixins.ListModelMixin, Management[Leaf]):
    """What was signed of the tenant's chain, newest first. Whoever keeps them sees what is rewritten later."""

    scopes = {"GET": READ}
    needs_tenant = False
    ordering = ("-id",)
    serializer_class = LeafSerializer

    def get_queryset(self) -> QuerySet[Leaf]:
        return Leaf.objects.filter(chain=_chain_of(self.tenant).pk).select_related("checkpoint")

    def get(self, request: Request) -> Response:
        return self.list(request)


class Key(Management[Event]):
    """The public half of the key that signs checkpoints and segments. Keep it where we can't change it."""

    scopes = {"GET": READ}
    needs_tenant = False

    @extend_schema(responses=PublicKeySerializer)
    def get(self, request: Request) -> Response:
        return Response({"algorithm": "ed25519", "public_key": signing.public_key()})


def _chain_of(tenant: Any) -> Chain:
    pk = tenant.pk if tenant else PLATFORM_CHAIN
    return Chain.objects.filter(pk=pk).first() or Chain(pk=pk)


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Raises Throttled while somebody else is in here for the same reason."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [f"audit:verify:{what}"])
        if not cursor.fetchone()[0]:
            raise Throttled(wait=5)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [f"audit:verify:{what}"])


def _matching(events: QuerySet[Event], wanted: dict[str, Any]) -> QuerySet[Event]:
    lookups = {"action": "action", "request_id": "request_id", "target": "target__startswith"}
    lookups |= {"since": "created_at__gte", "until": "created_at__lt"}
    events = events.filter(**{lookups[name]: value for name, value in wanted.items() if name in lookups})
    if "actor" in wanted:
        kind, _, pk = wanted["actor"].partition(":")
        events = events.filter(actor_kind=kind, actor_id=pk)
    return events
