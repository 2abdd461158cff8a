"""Evaluations: sets of prompts, runs of a version through one, and the scores beside each other."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from audit.services import Actor
from console import display as show
from console import fields, filters
from console.base import ConsoleAdmin, ConsoleInline, counted
from console.site import site
from console.verbs import Verb, VerbForm
from evaluations import services
from evaluations.lines import MAX_BYTES
from evaluations.models import PENDING, Evaluation, EvaluationSet, Result, State
from registry.models import State as VersionState
from registry.models import Version
from tenants.models import Role

COLOURS = {State.SUCCEEDED: "success", State.FAILED: "danger", State.CANCELLED: "default"}
LINES_HELP = (
    "JSON Lines, each with messages, expected, and a scorer: exact, contains, regex, json-schema or log-likelihood."
)


class NewSet(VerbForm):
    tenant = fields.row(EvaluationSet._meta.get_field("tenant"))
    name = fields.text(max_length=63, help_text="Lower-case letters, digits and inner dots, hyphens, underscores.")
    file = fields.file(help_text=LINES_HELP)

    def prepare(self) -> None:
        self.fields["tenant"].queryset = self.access.tenants_as(Role.EDITOR)  # type: ignore[attr-defined]

    def clean_file(self) -> bytes:
        given = self.cleaned_data["file"]
        if given.size > MAX_BYTES:
            raise forms.ValidationError(f"It may have {MAX_BYTES:,} bytes at most.")
        raw: bytes = given.read()
        return raw


class CreateSet(Verb):
    slug, title, submit = "create", "Add an evaluation set", "Add"
    explains = "A set never changes, so that scores on it can be compared."
    role = Role.EDITOR
    form_class = NewSet

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        wanted = form.cleaned_data
        return services.create_set(wanted["tenant"], wanted["name"], wanted["file"], actor=actor)


class GoRun(Verb):
    """Leads to the runs' own form, with the set filled in."""

    slug, title, submit, icon = "run", "Run it", "", "play_arrow"
    role = Role.EDITOR

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        address = reverse("admin:evaluations_evaluation_add")
        return HttpResponseRedirect(f"{address}?{urlencode({'set': self.target.pk})}")

    post = get


class DeleteSet(Verb):
    slug, title, submit, icon = "remove", "Delete", "Delete this set", "delete"
    explains = "All scores on it go with it."
    role = Role.OWNER
    danger = True

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        services.delete_set(self.target, actor=actor)
        return self.target.tenant  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"{self.target} is deleted."


class NewRun(VerbForm):
    set = fields.row(Evaluation._meta.get_field("set"))
    version = fields.row(Evaluation._meta.get_field("version"))

    def prepare(self) -> None:
        mine = self.access.tenants_as(Role.EDITOR)
        sets, versions = EvaluationSet.objects.filter(tenant__in=mine), Version.objects.filter(adapter__tenant__in=mine)
        self.fields["set"].queryset = sets.select_related("tenant")  # type: ignore[attr-defined]
        ready = versions.filter(state=VersionState.READY).select_related("adapter__tenant")
        self.fields["version"].queryset = ready  # type: ignore[attr-defined]


class Run(Verb):
    slug, title, submit = "run", "Run an evaluation", "Run"
    explains = "A worker asks the version every question of the set, behind live requests."
    role = Role.EDITOR
    form_class = NewRun

    def get_initial(self) -> dict[str, Any]:
        return {name: self.request.GET[name] for name in ("set", "version") if name in self.request.GET}

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        wanted, version = form.cleaned_data["set"], form.cleaned_data["version"]
        return services.request_evaluation(wanted.tenant, wanted, str(version), actor=actor)

    def done(self, row: Model) -> str:
        return f"{row} waits for a worker."


class CancelRun(Verb):
    slug, title, submit, icon = "cancel", "Cancel", "Cancel this run", "block"
    role = Role.EDITOR
    danger = True

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.state in PENDING

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.cancel_evaluation(self.target, actor=actor)

    def done(self, row: Model) -> str:
        return f"{row} is cancelled."


def scores(found: EvaluationSet) -> SafeString:
    """Every model's newest score on the set, with its interval, the base model's first."""
    rows = [row for row in services.comparison(found.tenant, None) if found.name in row.evaluations]
    shown = [{"model": row.model, "run": row.evaluations[found.name]} for row in rows]
    return render_to_string("console/scores.html", {"rows": shown})


@admin.register(EvaluationSet, site=site)
class EvaluationSetAdmin(ConsoleAdmin):
    tenant_path = "tenant_id"
    adds = CreateSet
    verbs = (GoRun, DeleteSet)
    icon = "checklist"
    actor_field = "uploader"
    list_display = ("name", "tenant", "measure", "count", "runs", "created_at")
    list_select_related = ("tenant",)
    list_filter = (("tenant", filters.Row), ("measure", filters.Choices))
    search_fields = ("name", "tenant__slug")
    ordering = ("tenant__slug", "name")
    fields = ("name", "tenant", "scores_", "measure", "count", "size_", "digest_", "by", "created_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        runs = counted(Evaluation.objects.all(), "set")
        rows: QuerySet[Any] = super().get_queryset(request).select_related("tenant").annotate(runs_=runs)
        return rows

    @admin.display(description="Scores")
    def scores_(self, found: EvaluationSet) -> SafeString:
        return scores(found)

    @admin.display(description="Runs", ordering="runs_")
    def runs(self, found: Any) -> int:
        return int(found.runs_)

    @admin.display(description="Size")
    def size_(self, found: EvaluationSet) -> str:
        return show.size(found.size)

    @admin.display(description="Digest")
    def digest_(self, found: EvaluationSet) -> SafeString:
        return show.code(found.digest)


class Results(ConsoleInline):
    model = Result
    fields = readonly_fields = ("line", "value", "answer", "note")
    verbose_name_plural = "Answers"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("item")

    @admin.display(description="Line")
    def line(self, result: Result) -> int:
        return result.item.number


@admin.register(Evaluation, site=site)
class EvaluationAdmin(ConsoleAdmin):
    tenant_path = "tenant_id"
    adds = Run
    verbs = (CancelRun,)
    inlines = (Results,)
    icon = "grading"
    actor_field = "creator"
    list_display = ("model", "set_", "state_", "progress", "score", "created_at", "finished_at")
    list_select_related = ("set__tenant",)
    list_filter = (("state", filters.Choices), ("tenant", filters.Row), ("set", filters.Row))
    search_fields = ("model", "set__name", "tenant__slug")
    ordering = ("-created_at",)
    fields = (
        *("model", "set_", "version", "state_", "progress", "score", "error"),
        *("by", "created_at", "started_at", "finished_at"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        related = ("set__tenant", "version__adapter__tenant")
        return super().get_queryset(request).select_related(*related)

    def target_of(self, obj: Evaluation) -> str:
        return obj.model

    @admin.display(description="Set", ordering="set__name")
    def set_(self, evaluation: Evaluation) -> SafeString:
        return show.link(evaluation.set, str(evaluation.set))

    @admin.display(description="State", ordering="state")
    def state_(self, evaluation: Evaluation) -> SafeString:
        return show.badge(evaluation.state, COLOURS.get(State(evaluation.state), "info"))

    @admin.display(description="Progress")
    def progress(self, evaluation: Evaluation) -> str:
        return f"{evaluation.done} of {evaluation.set.count}"

    @admin.display(description="Score")
    def score(self, evaluation: Evaluation) -> str:
        score = evaluation.score
        return f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})" if score else "-"
