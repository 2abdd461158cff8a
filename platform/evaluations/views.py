"""Serves evaluation sets, evaluations and their comparison. A key confined to some adapters sees those' alone."""

from collections.abc import Sequence
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import F, Model, Q, QuerySet
from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import CharField, FileField

from apikeys.models import ApiKey, Scope
from audit.api import Management, Strict
from audit.parsing import StrictForm
from evaluations import services
from evaluations.errors import Fault, NoSuchSet, SetMalformed
from evaluations.lines import MAX_BYTES
from evaluations.models import Evaluation, EvaluationSet, Result
from evaluations.serializers import (
    SET_REQUEST,
    ComparisonSerializer,
    EvaluationSerializer,
    NewEvaluation,
    ResultSerializer,
    SetSerializer,
)
from evaluations.services.scores import Row
from registry.upload_views import IntoQuarantine
from tenants.errors import Forbidden

READ_WRITE = {"GET": Scope.EVALUATIONS_READ, "POST": Scope.EVALUATIONS_WRITE}

M = TypeVar("M", bound=Model)


class EvaluationView(Management[M]):
    @property
    def allowed(self) -> Sequence[str]:
        """Names of the adapters that the caller may deal with; none: all."""
        return self.request.auth.adapters if isinstance(self.request.auth, ApiKey) else []

    def sets(self) -> QuerySet[EvaluationSet]:
        return EvaluationSet.objects.for_tenant(self.tenant)

    def evaluations(self) -> QuerySet[Evaluation]:
        mine = Evaluation.objects.for_tenant(self.tenant).select_related("set")
        return mine.filter(Q(version=None) | Q(version__adapter__name__in=self.allowed)) if self.allowed else mine


class NewSet(Strict):
    name = CharField(max_length=63)
    file = FileField(allow_empty_file=True)


class Sets(mixins.ListModelMixin, IntoQuarantine, EvaluationView[EvaluationSet]):
    limit = 2 * MAX_BYTES  # of what is a little too large the answer names the bound
    scopes = READ_WRITE
    ordering = ("name",)
    serializer_class = SetSerializer
    parser_classes = [StrictForm]

    def get_queryset(self) -> QuerySet[EvaluationSet]:
        return self.sets()

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=SET_REQUEST, responses={201: SetSerializer})
    def post(self, request: Request) -> Response:
        wanted = NewSet(data=request.data)
        wanted.is_valid(raise_exception=True)
        name, raw = wanted.validated_data["name"], _read(wanted.validated_data["file"])
        created = services.create_set(self.tenant, name, raw, actor=self.actor)
        return Response(SetSerializer(created).data, status=status.HTTP_201_CREATED)


class OneSet(EvaluationView[EvaluationSet]):
    scopes = {"GET": Scope.EVALUATIONS_READ, "DELETE": Scope.EVALUATIONS_WRITE}
    serializer_class = SetSerializer

    def get(self, request: Request, evaluation_set: str) -> Response:
        return Response(SetSerializer(_named(self.sets(), evaluation_set)).data)

    def delete(self, request: Request, evaluation_set: str) -> Response:
        """A key that is confined to some adapters deletes what it made itself: others evaluate on the rest."""
        found = _named(self.sets(), evaluation_set)
        if self.allowed and found.uploader != str(self.actor):
            raise Forbidden("A key that is confined to adapters deletes only sets that it made itself.")
        services.delete_set(found, actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)


class Evaluations(mixins.ListModelMixin, EvaluationView[Evaluation]):
    scopes = READ_WRITE
    serializer_class = EvaluationSerializer

    def get_queryset(self) -> QuerySet[Evaluation]:
        return self.evaluations()

    def get(self, request: Request) -> Response:
        return self.list(request)

    @extend_schema(request=NewEvaluation, responses={202: EvaluationSerializer})
    def post(self, request: Request) -> Response:
        wanted = NewEvaluation(data=request.data)
        wanted.is_valid(raise_exception=True)
        chosen = _named(self.sets(), wanted.validated_data["set"])
        asked = services.request_evaluation(
            self.tenant, chosen, wanted.validated_data["model"], allowed=self.allowed, actor=self.actor
        )
        headers = {"Location": reverse("evaluations:evaluation", args=[asked.pk])}
        return Response(EvaluationSerializer(asked).data, status.HTTP_202_ACCEPTED, headers=headers)


class OneEvaluation(EvaluationView[Evaluation]):
    scopes = {"GET": Scope.EVALUATIONS_READ}
    serializer_class = EvaluationSerializer

    def get(self, request: Request, evaluation: UUID) -> Response:
        return Response(EvaluationSerializer(get_object_or_404(self.evaluations(), pk=evaluation)).data)


class Cancel(EvaluationView[Evaluation]):
    scopes = {"POST": Scope.EVALUATIONS_WRITE}
    serializer_class = EvaluationSerializer

    @extend_schema(request=None)
    def post(self, request: Request, evaluation: UUID) -> Response:
        found = get_object_or_404(self.evaluations(), pk=evaluation)
        return Response(EvaluationSerializer(services.cancel_evaluation(found, actor=self.actor)).data)


class Results(mixins.ListModelMixin, EvaluationView[Result]):
    scopes = {"GET": Scope.EVALUATIONS_READ}
    ordering = ("line",)
    serializer_class = ResultSerializer

    def get_queryset(self) -> QuerySet[Result]:
        evaluation = get_object_or_404(self.evaluations(), pk=self.kwargs["evaluation"])
        return evaluation.results.select_related("item").annotate(line=F("item__number"))

    def get(self, request: Request, evaluation: UUID) -> Response:
        return self.list(request)


class Comparison(EvaluationView[Evaluation]):
    scopes = {"GET": Scope.EVALUATIONS_READ}
    serializer_class = ComparisonSerializer

    @extend_schema(parameters=[OpenApiParameter("adapter", str, description="Only this adapter's versions.")])
    def get(self, request: Request) -> Response:
        """Versions beside each other: the newest score of each on each set, and the base model's."""
        rows = services.comparison(self.tenant, request.query_params.get("adapter"), self.allowed)
        sets = self.sets().filter(name__in={name for row in rows for name in row.evaluations})
        shown = {"sets": sets, "models": [_row(row) for row in rows]}
        return Response(ComparisonSerializer(shown).data)


def _row(row: Row) -> dict[str, Any]:
    return {"model": row.model, "version": row.version, "scores": {s: _cell(e) for s, e in row.evaluations.items()}}


def _cell(done: Evaluation) -> dict[str, Any]:
    score = {"mean": done.mean, "low": done.low, "high": done.high, "n": done.done}
    return {**score, "evaluation": done.pk, "finished_at": done.finished_at}


def _named(sets: QuerySet[EvaluationSet], name: str) -> EvaluationSet:
    found = sets.filter(name=name).first() if name.isprintable() else None
    if found is None:
        raise NoSuchSet
    return found


def _read(file: Any) -> bytes:
    if (file.size or 0) > MAX_BYTES:
        raise SetMalformed([Fault(0, "", f"it may have {MAX_BYTES:,} bytes at most")])
    raw: bytes = file.read()
    return raw
