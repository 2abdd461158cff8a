"""Serves keys. A plaintext is in the answer to POST keys and POST keys/{id}/rotate, and nowhere else, ever."""

from datetime import timedelta
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from apikeys import services
from apikeys.models import ApiKey, Scope
from audit.api import Management, Strict

DAY = 24 * 60 * 60


class KeySerializer(serializers.ModelSerializer[ApiKey]):
    tenant = serializers.SlugRelatedField[ApiKey](slug_field="slug", read_only=True)

    class Meta:
        model = ApiKey
        fields = [
            "id", "tenant", "name", "prefix", "scopes", "adapters",
            "expires_at", "revoked_at", "last_used_at", "created_at",
        ]  # fmt: skip
        read_only_fields = fields


class IssuedSerializer(KeySerializer):
    key = serializers.CharField(read_only=True, help_text="Shown this once.")

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "key"]
        read_only_fields = fields


class NewKey(Strict):
    name = serializers.CharField(max_length=200)
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices), min_length=1, max_length=20)
    adapters = serializers.ListField(child=serializers.CharField(max_length=63), default=list, max_length=1000)
    expires_at = serializers.DateTimeField(default=None, allow_null=True)


class Rotation(Strict):
    grace_seconds = serializers.IntegerField(default=0, min_value=0, max_value=30 * DAY)


class KeyView(Management[ApiKey]):
    """An operator who names no tenant deals with the operators' own keys."""

    needs_tenant = False
    serializer_class = KeySerializer

    def get_queryset(self) -> QuerySet[ApiKey]:
        return ApiKey.objects.for_tenant(self.tenant).select_related("tenant")

    @property
    def issuer(self) -> ApiKey | None:
        return self.request.auth if isinstance(self.request.auth, ApiKey) else None

    def issued(self, key: ApiKey, plaintext: str) -> Response:
        body = {**KeySerializer(key).data, "key": plaintext}
        return Response(body, status=status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})


class Keys(mixins.ListModelMixin, KeyView):
    scopes = {"GET": Scope.KEYS_READ, "POST": Scope.KEYS_WRITE}

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=NewKey, responses={201: IssuedSerializer})
    def post(self, request: Request) -> Response:
        wanted = NewKey(data=request.data)
        wanted.is_valid(raise_exception=True)
        fields = wanted.validated_data
        return self.issued(*services.issue(self.tenant, **fields, actor=self.actor, issuer=self.issuer))


class OneKey(mixins.RetrieveModelMixin, KeyView):
    scopes = {"GET": Scope.KEYS_READ}

    def get(self, request: Request, pk: UUID) -> Response:
        return self.retrieve(request)


class Revoke(KeyView):
    scopes = {"POST": Scope.KEYS_WRITE}

    @extend_schema(request=None, responses=KeySerializer)
    def post(self, request: Request, pk: UUID) -> Response:
        return Response(KeySerializer(services.revoke(self.get_object(), actor=self.actor, issuer=self.issuer)).data)


class Rotate(KeyView):
    scopes = {"POST": Scope.KEYS_WRITE}

    @extend_schema(request=Rotation, responses={201: IssuedSerializer})
    def post(self, request: Request, pk: UUID) -> Response:
        key = self.get_object()
        wanted = Rotation(data=request.data or {})
        wanted.is_valid(raise_exception=True)
        grace = timedelta(seconds=wanted.validated_data["grace_seconds"])
        return self.issued(*services.rotate(key, grace=grace, actor=self.actor, issuer=self.issuer))
