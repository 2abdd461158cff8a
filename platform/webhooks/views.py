"""Serves a tenant's webhook endpoints and the log of their deliveries. A secret is shown once, by POST."""

from uuid import UUID

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from audit.api import Management, Strict
from webhooks import services
from webhooks.models import Delivery, Endpoint

READ, WRITE = "webhooks:read", "webhooks:write"


class EndpointSerializer(serializers.ModelSerializer[Endpoint]):
    class Meta:
        model = Endpoint
        fields = ["id", "url", "events", "active", "created_at"]
        read_only_fields = fields


class CreatedSerializer(EndpointSerializer):
    secret = serializers.CharField(read_only=True, help_text="Shown this once.")

    class Meta(EndpointSerializer.Meta):
        fields = [*EndpointSerializer.Meta.fields, "secret"]
        read_only_fields = fields


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    class Meta:
        model = Delivery
        fields = ["id", "message_id", "event", "data", "state", "attempts", "next_at", "log", "created_at"]
        read_only_fields = fields


class NewEndpoint(Strict):
    url = serializers.CharField(max_length=2000)
    events = serializers.ListField(child=serializers.CharField(max_length=64), min_length=1, max_length=50)


class EndpointChanges(Strict):
    url = serializers.CharField(max_length=2000, required=False)
    events = serializers.ListField(
        child=serializers.CharField(max_length=64), min_length=1, max_length=50, required=False
    )
    active = serializers.BooleanField(required=False)


class EndpointView(Management[Endpoint]):
    serializer_class = EndpointSerializer

    def get_queryset(self) -> QuerySet[Endpoint]:
        return Endpoint.objects.for_tenant(self.tenant).select_related("tenant")

    def with_secret(self, endpoint: Endpoint, secret: str, code: int) -> Response:
        body = {**EndpointSerializer(endpoint).data, "secret": secret}
        return Response(body, status=code, headers={"Cache-Control": "no-store"})


class Endpoints(mixins.ListModelMixin, EndpointView):
    scopes = {"GET": READ, "POST": WRITE}

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=NewEndpoint, responses={201: CreatedSerializer})
    def post(self, request: Request) -> Response:
        wanted = NewEndpoint(data=request.data)
        wanted.is_valid(raise_exception=True)
        endpoint, secret = services.create_endpoint(self.tenant, **wanted.validated_data, actor=self.actor)
        return self.with_secret(endpoint, secret, status.HTTP_201_CREATED)


class OneEndpoint(mixins.RetrieveModelMixin, EndpointView):
    scopes = {"GET": READ, "PATCH": WRITE, "DELETE": WRITE}

    def get(self, request: Request, pk: UUID) -> Response:
        return self.retrieve(request)

    @extend_schema(request=EndpointChanges)
    def patch(self, request: Request, pk: UUID) -> Response:
        endpoint = self.get_object()
        wanted = EndpointChanges(data=request.data)
        wanted.is_valid(raise_exception=True)
        endpoint = services.change_endpoint(endpoint, actor=self.actor, **wanted.validated_data)
        return Response(EndpointSerializer(endpoint).data)

    def delete(self, request: Request, pk: UUID) -> Response:
        services.delete_endpoint(self.get_object(), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)


class Rotate(EndpointView):
    scopes = {"POST": WRITE}

    @extend_schema(request=None, responses={200: CreatedSerializer})
    def post(self, request: Request, pk: UUID) -> Response:
        """Gives the endpoint a new secret; for a day deliveries are signed with both."""
        return self.with_secret(*services.rotate_secret(self.get_object(), actor=self.actor), status.HTTP_200_OK)


class Ping(EndpointView):
    scopes = {"POST": WRITE}

    @extend_schema(request=None, responses={202: DeliverySerializer})
    def post(self, request: Request, pk: UUID) -> Response:
        delivery = services.ping(self.get_object())
        return Response(DeliverySerializer(delivery).data, status=status.HTTP_202_ACCEPTED)


class Deliveries(mixins.ListModelMixin, Management[Delivery]):
    """What was sent, or is about to be, newest first."""

    scopes = {"GET": READ}
    ordering = ("-created_at", "-id")
    serializer_class = DeliverySerializer

    def get_queryset(self) -> QuerySet[Delivery]:
        endpoint = get_object_or_404(Endpoint.objects.for_tenant(self.tenant), pk=self.kwargs["pk"])
        return Delivery.objects.for_tenant(self.tenant).filter(endpoint=endpoint)

    def get(self, request: Request, pk: UUID) -> Response:
        return self.list(request)
