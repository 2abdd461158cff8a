"""Serves the keys that a tenant signs versions with, and whether it must."""

from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from apikeys.models import Scope
from audit.api import Management, Strict
from registry import services
from registry.intake import SigningKey


class SigningKeySerializer(serializers.ModelSerializer[SigningKey]):
    class Meta:
        model = SigningKey
        fields = ["id", "name", "public_key", "created_at", "revoked_at"]
        read_only_fields = fields


class NewSigningKey(Strict):
    name = serializers.CharField(max_length=200)
    public_key = serializers.CharField(max_length=1000, help_text="ed25519: the base64 of 32 bytes, or PEM.")


class Policy(Strict):
    required: Any = serializers.BooleanField(help_text="Only signed versions become ready.")


class SigningKeyView(Management[SigningKey]):
    serializer_class = SigningKeySerializer

    def get_queryset(self) -> QuerySet[SigningKey]:
        return SigningKey.objects.for_tenant(self.tenant).select_related("tenant")


class SigningKeys(mixins.ListModelMixin, SigningKeyView):
    scopes = {"GET": Scope.KEYS_READ, "POST": Scope.KEYS_WRITE}

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=NewSigningKey, responses={201: SigningKeySerializer})
    def post(self, request: Request) -> Response:
        wanted = NewSigningKey(data=request.data)
        wanted.is_valid(raise_exception=True)
        key = services.add_signing_key(self.tenant, **wanted.validated_data, actor=self.actor)
        return Response(SigningKeySerializer(key).data, status=status.HTTP_201_CREATED)


class RevokeSigningKey(SigningKeyView):
    scopes = {"POST": Scope.KEYS_WRITE}
    lookup_url_kwarg = "signing_key"

    @extend_schema(request=None)
    def post(self, request: Request, signing_key: UUID) -> Response:
        return Response(SigningKeySerializer(services.revoke_signing_key(self.get_object(), actor=self.actor)).data)


class SigningPolicy(SigningKeyView):
    scopes = {"GET": Scope.KEYS_READ, "PUT": Scope.KEYS_WRITE}
    serializer_class = Policy  # type: ignore[assignment]

    def get(self, request: Request) -> Response:
        return Response({"required": self.tenant.requires_signature})

    def put(self, request: Request) -> Response:
        wanted = Policy(data=request.data)
        wanted.is_valid(raise_exception=True)
        tenant = services.require_signatures(self.tenant, **wanted.validated_data, actor=self.actor)
        return Response({"required": tenant.requires_signature})
