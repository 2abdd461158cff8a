"""Serves rollouts. A key that is confined to some adapters does not see that there are others."""

from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.request import Request
from rest_framework.response import Response

from apikeys.models import Scope
from registry.views import RegistryView
from rollouts import services
from rollouts.errors import RolloutNotFound
from rollouts.models import Look, Rollout
from rollouts.serializers import LookSerializer, NewRollout, Reason, RolloutDetail, RolloutSerializer

WRITE = {"POST": Scope.ROLLOUTS_WRITE}


class RolloutView(RegistryView[Rollout]):
    serializer_class: Any = RolloutDetail

    def rollouts(self) -> QuerySet[Rollout]:
        own = Rollout.objects.for_tenant(self.tenant).filter(adapter=self.adapter())
        return own.select_related("adapter__tenant", "stable", "canary")

    def rollout(self) -> Rollout:
        """The one that the URL names. Raises AdapterNotFound, RolloutNotFound."""
        found = self.rollouts().filter(pk=self.kwargs["rollout"]).first()
        if found is None:
            raise RolloutNotFound
        return found

    def shown(self, rollout: Rollout) -> Response:
        return Response(RolloutDetail(rollout).data)


class Rollouts(mixins.ListModelMixin, RolloutView):
    scopes = {"GET": Scope.ROLLOUTS_READ, **WRITE}
    serializer_class = RolloutSerializer

    def get_queryset(self) -> QuerySet[Rollout]:
        return self.rollouts()

    def get(self, request: Request, name: str) -> Response:
        return self.list(request)

    @extend_schema(request=NewRollout, responses={201: RolloutDetail})
    def post(self, request: Request, name: str) -> Response:
        """Moves an alias to a version, step by step."""
        adapter = self.adapter()
        wanted = NewRollout(data=request.data)
        wanted.is_valid(raise_exception=True)
        start = wanted.validated_data["start"]
        rollout = services.create_rollout(adapter, wanted.plan(), actor=self.actor, start=start)
        return Response(RolloutDetail(rollout).data, status=status.HTTP_201_CREATED)


class OneRollout(RolloutView):
    scopes = {"GET": Scope.ROLLOUTS_READ}

    def get(self, request: Request, name: str, rollout: UUID) -> Response:
        return self.shown(self.rollout())


class Verdicts(mixins.ListModelMixin, RegistryView[Look]):
    scopes = {"GET": Scope.ROLLOUTS_READ}
    ordering = ("-number",)
    serializer_class = LookSerializer

    def get_queryset(self) -> QuerySet[Look]:
        own = Rollout.objects.for_tenant(self.tenant).filter(adapter=self.adapter(), pk=self.kwargs["rollout"]).first()
        if own is None:
            raise RolloutNotFound
        return own.history.all()

    def get(self, request: Request, name: str, rollout: UUID) -> Response:
        return self.list(request)


class Start(RolloutView):
    scopes = WRITE

    @extend_schema(request=None)
    def post(self, request: Request, name: str, rollout: UUID) -> Response:
        return self.shown(services.start_rollout(self.rollout(), actor=self.actor))


class Pause(RolloutView):
    scopes = WRITE

    @extend_schema(request=None)
    def post(self, request: Request, name: str, rollout: UUID) -> Response:
        return self.shown(services.pause(self.rollout(), actor=self.actor))


class Resume(RolloutView):
    scopes = WRITE

    @extend_schema(request=None)
    def post(self, request: Request, name: str, rollout: UUID) -> Response:
        return self.shown(services.resume(self.rollout(), actor=self.actor))


class Approve(RolloutView):
    scopes = WRITE

    @extend_schema(request=None)
    def post(self, request: Request, name: str, rollout: UUID) -> Response:
        """Passes the gate that it waits at."""
        return self.shown(services.approve(self.rollout(), actor=self.actor))


class Promote(RolloutView):
    scopes = WRITE

    @extend_schema(request=None)
    def post(self, request: Request, name: str, rollout: UUID) -> Response:
        """Skips what is left of the steps."""
        return self.shown(services.promote(self.rollout(), actor=self.actor))


class Abort(RolloutView):
    scopes = WRITE

    @extend_schema(request=Reason)
    def post(self, request: Request, name: str, rollout: UUID) -> Response:
        """Rolls back, in any state. It holds from the next request on."""
        found = self.rollout()
        wanted = Reason(data=request.data or {})
        wanted.is_valid(raise_exception=True)
        return self.shown(services.abort(found, actor=self.actor, reason=wanted.validated_data["reason"]))
