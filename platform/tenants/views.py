"""Serves tenants and their members to operators."""

from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from audit.api import Management, Strict
from tenants import services
from tenants.models import Member, Role, Tenant

PLATFORM = "platform"


class TenantSerializer(serializers.ModelSerializer[Tenant]):
    class Meta:
        model = Tenant
        fields = [
            "id", "slug", "name", "weight", "active", "quota_bytes", "quota_versions", "quota_uploads", "quota_pins",
            "quota_adapters", "quota_keys", "quota_evaluation_bytes", "requires_signature", "created_at",
        ]  # fmt: skip


class NewTenant(Strict):
    slug = serializers.CharField(max_length=63)
    name = serializers.CharField(max_length=200)
    weight = serializers.FloatField(default=1.0, min_value=0.01, max_value=1000)


class TenantChanges(Strict):
    name = serializers.CharField(max_length=200, required=False)
    weight = serializers.FloatField(required=False, min_value=0.01, max_value=1000)
    active = serializers.BooleanField(required=False)
    quota_bytes = serializers.IntegerField(required=False, min_value=0, max_value=2**62)
    quota_versions = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    quota_uploads = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    quota_adapters = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    quota_keys = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    quota_evaluation_bytes = serializers.IntegerField(required=False, min_value=0, max_value=2**62)
    quota_pins = serializers.IntegerField(required=False, min_value=0, max_value=2**15 - 1)


class Tenants(mixins.ListModelMixin, Management[Tenant]):
    scopes = {"GET": PLATFORM, "POST": PLATFORM}
    needs_tenant = False
    ordering = ("slug",)
    queryset = Tenant.objects.all()
    serializer_class = TenantSerializer

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=NewTenant, responses={201: TenantSerializer})
    def post(self, request: Request) -> Response:
        wanted = NewTenant(data=request.data)
        wanted.is_valid(raise_exception=True)
        tenant = services.create_tenant(**wanted.validated_data, actor=self.actor)
        return Response(TenantSerializer(tenant).data, status=status.HTTP_201_CREATED)


class OneTenant(mixins.RetrieveModelMixin, Management[Tenant]):
    scopes = {"GET": PLATFORM, "PATCH": PLATFORM}
    needs_tenant = False
    lookup_field = "slug"
    serializer_class = TenantSerializer

    def get_queryset(self) -> QuerySet[Tenant]:
        return Tenant.objects.all()

    def get(self, request: Request, slug: str) -> Response:
        return self.retrieve(request)

    @extend_schema(request=TenantChanges, responses=TenantSerializer)
    def patch(self, request: Request, slug: str) -> Response:
        tenant = self.get_object()
        wanted = TenantChanges(data=request.data)
        wanted.is_valid(raise_exception=True)
        tenant = services.change_tenant(tenant, actor=self.actor, **wanted.validated_data)
        return Response(TenantSerializer(tenant).data)


class MemberSerializer(serializers.ModelSerializer[Member]):
    username = serializers.CharField(source="user.username", read_only=True)

    class Meta:
        model = Member
        fields = ["username", "role", "created_at"]


class MemberRole(Strict):
    role = serializers.ChoiceField(choices=Role.choices)


class Members(mixins.ListModelMixin, Management[Member]):
    scopes = {"GET": PLATFORM}
    needs_tenant = False
    ordering = ("pk",)
    serializer_class = MemberSerializer

    def get_queryset(self) -> QuerySet[Member]:
        return Member.objects.filter(tenant__slug=self.kwargs["slug"]).select_related("user")

    def get(self, request: Request, slug: str) -> Response:
        get_object_or_404(Tenant, slug=slug)
        return self.list(request)


class OneMember(Management[Member]):
    """Accounts are made in the console; here they get a role, or lose it."""

    scopes = {"PUT": PLATFORM, "DELETE": PLATFORM}
    needs_tenant = False
    serializer_class = MemberSerializer

    @extend_schema(request=MemberRole, responses=MemberSerializer)
    def put(self, request: Request, slug: str, username: str) -> Response:
        wanted = MemberRole(data=request.data)
        wanted.is_valid(raise_exception=True)
        tenant, user = self._both(slug, username)
        member = services.add_member(tenant, user, Role(wanted.validated_data["role"]), actor=self.actor)
        return Response(MemberSerializer(member).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, slug: str, username: str) -> Response:
        tenant, user = self._both(slug, username)
        services.remove_member(tenant, user, actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _both(self, slug: str, username: str) -> tuple[Tenant, Any]:
        return get_object_or_404(Tenant, slug=slug), get_object_or_404(get_user_model(), username=username)
