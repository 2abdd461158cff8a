"""Rollouts: watched here, paused, approved, promoted and aborted. How one is begun is in `console.pages.plans`."""

from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from audit.services import Actor
from console import display as show
from console import fields, filters
from console.base import ConsoleAdmin, ConsoleInline
from console.pages.plans import BeginRollout, StartRollout
from console.site import site
from console.verbs import Verb, VerbForm
from rollouts import services
from rollouts.models import OVER, Look, Pause, Rollout, State, Step
from rollouts.services.figures import figures
from tenants.models import Role

COLOURS = {
    State.SUCCEEDED: "success",
    State.ROLLED_BACK: "danger",
    State.ROLLING_BACK: "danger",
    State.PAUSED: "warning",
    State.DRAFT: "default",
}
RUNNING = (State.SHADOWING, State.PROGRESSING)


class RolloutVerb(Verb):
    role = Role.EDITOR

    def done(self, row: Model) -> str:
        return f"{row} is {State(row.state).label.lower()}."  # type: ignore[attr-defined]


class PauseRollout(RolloutVerb):
    slug, title, submit, icon = "pause", "Pause", "Pause", "pause"
    explains = "The canary keeps what it serves, and the guardrails stay on guard."

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.state in RUNNING

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.pause(self.target, actor=actor)


class ResumeRollout(RolloutVerb):
    slug, title, submit, icon = "resume", "Resume", "Resume", "play_arrow"

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.state == State.PAUSED and target.pause != Pause.GATE)

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.resume(self.target, actor=actor)


class ApproveRollout(RolloutVerb):
    slug, title, submit, icon = "approve", "Approve", "Approve", "check"
    explains = "It passes the gate that it waits at and goes on with the next step."

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.state == State.PAUSED and target.pause == Pause.GATE)

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.approve(self.target, actor=actor)


class PromoteRollout(RolloutVerb):
    slug, title, submit, icon = "promote", "Promote", "Move the alias now", "keyboard_double_arrow_right"
    explains = "What is left of the steps is skipped, and the alias moves to the canary."

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.state in (*RUNNING, State.PAUSED)

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.promote(self.target, actor=actor)


class Why(VerbForm):
    reason = fields.text(required=False, max_length=500)


class AbortRollout(RolloutVerb):
    slug, title, submit, icon = "abort", "Abort", "Roll back", "undo"
    explains = "From the next request on the alias' own version serves everybody."
    form_class = Why
    danger = True

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.state not in (*OVER, State.ROLLING_BACK)

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.abort(self.target, actor=actor, reason=form.cleaned_data["reason"])


class StepsInline(ConsoleInline):
    model = Step
    verbose_name_plural = "Steps"
    fields = readonly_fields = ("percent", "shadow", "min_seconds", "min_samples", "max_seconds", "gate", "entered_at")

    @admin.display(description="Percent")
    def percent(self, step: Step) -> str:
        return f"{step.weight / 100:g}"


class LooksInline(ConsoleInline):
    model = Look
    verbose_name_plural = "Verdicts"
    fields = readonly_fields = ("at", "step", "kind", "why")

    @admin.display(description="Why")
    def why(self, look: Look) -> str:
        return "; ".join(look.reasons)


@admin.register(Rollout, site=site)
class RolloutAdmin(ConsoleAdmin):
    tenant_path = "adapter__tenant_id"
    adds = BeginRollout
    verbs = (StartRollout, PauseRollout, ResumeRollout, ApproveRollout, PromoteRollout, AbortRollout)
    inlines = (StepsInline, LooksInline)
    icon = "alt_route"
    actor_field = "maker"
    list_display = ("name", "state_", "percent", "why", "started_at", "ended_at")
    list_filter = (("state", filters.Choices), ("adapter__tenant", filters.Row), ("adapter", filters.Row))
    search_fields = ("adapter__name", "adapter__tenant__slug", "alias")
    ordering = ("-created_at",)
    fields = (
        *("adapter", "alias", "stable", "canary", "state_", "percent", "why", "arms", "unit", "on_new", "override"),
        *("by", "created_at", "started_at", "entered_at", "ended_at"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        related = ("adapter__tenant", "stable__adapter__tenant", "canary__adapter__tenant")
        return super().get_queryset(request).select_related(*related)

    @admin.display(description="Rollout", ordering="adapter__name")
    def name(self, rollout: Rollout) -> str:
        return str(rollout)

    @admin.display(description="State", ordering="state")
    def state_(self, rollout: Rollout) -> SafeString:
        return show.badge(State(rollout.state).label.lower(), COLOURS.get(State(rollout.state), "info"))

    @admin.display(description="Canary's traffic")
    def percent(self, rollout: Rollout) -> str:
        return f"{rollout.weight / 100:g} %" + (f", copies of {rollout.copies / 100:g} %" if rollout.copies else "")

    @admin.display(description="Why")
    def why(self, rollout: Rollout) -> str:
        return "; ".join([*filter(None, [rollout.cause or rollout.pause]), *rollout.reasons]) or "-"

    @admin.display(description="This step so far")
    def arms(self, rollout: Rollout) -> SafeString:
        return show.pairs(figures(rollout))
