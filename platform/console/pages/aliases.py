"""Aliases: movable names. Made on an adapter's page; moved, rolled back and removed here, by compare-and-set."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from audit.services import Actor
from console import actors, fields, filters
from console.base import ConsoleAdmin
from console.site import site
from console.verbs import Verb, VerbForm
from registry import services
from registry.models import Alias, State
from tenants.models import Role

SHOWN_MOVES = 20


class Destination(VerbForm):
    version = fields.number_of()
    reason = fields.text(max_length=500, required=False)
    expected = forms.IntegerField(widget=forms.HiddenInput)

    def prepare(self) -> None:
        now = self.target.version.number
        ready = self.target.adapter.versions.filter(state=State.READY).values_list("number", flat=True)
        choices = [(number, f"v{number}" + (" (now)" if number == now else "")) for number in ready]
        self.fields["version"].choices = choices  # type: ignore[attr-defined]
        self.initial = {"version": now, "expected": now}


class MoveAlias(Verb):
    slug, title, submit, icon = "move", "Move", "Move", "swap_horiz"
    explains = "Requests by this name are served by the version that you choose, from the next one on."
    role = Role.EDITOR
    form_class = Destination

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        wanted = form.cleaned_data
        return services.move_alias(
            *(self.target.adapter, self.target.name, wanted["version"]),
            expected=wanted["expected"],
            actor=actor,
            reason=wanted["reason"],
        )

    def done(self, row: Model) -> str:
        return f"{row} points to v{row.version.number}."  # type: ignore[attr-defined]


class Back(VerbForm):
    reason = fields.text(max_length=500, required=False)
    expected = forms.IntegerField(widget=forms.HiddenInput)

    def prepare(self) -> None:
        self.initial = {"expected": self.target.version.number}


class RollBackAlias(Verb):
    slug, title, submit, icon = "roll-back", "Roll back", "Roll back", "undo"
    explains = "Requests by this name go to the version that it was moved here from, from the next one on."
    role = Role.EDITOR
    danger = True
    form_class = Back

    @classmethod
    def applies(cls, target: Any) -> bool:
        return services.previous(target) is not None

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        expected, reason = form.cleaned_data["expected"], form.cleaned_data["reason"]
        return services.rollback_alias(
            self.target.adapter, self.target.name, expected=expected, actor=actor, reason=reason
        )

    def done(self, row: Model) -> str:
        return f"{row} points to v{row.version.number} again."  # type: ignore[attr-defined]


class DeleteAlias(Verb):
    slug, title, submit, icon = "remove", "Delete", "Delete this alias", "delete"
    explains = "Requests by this name are refused from now on. The version stays."
    role = Role.EDITOR
    danger = True

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        services.delete_alias(self.target, actor=actor)
        return self.target.adapter  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"{self.target} is deleted."


@admin.register(Alias, site=site)
class AliasAdmin(ConsoleAdmin):
    tenant_path = "adapter__tenant_id"
    verbs = (MoveAlias, RollBackAlias, DeleteAlias)
    icon = "sell"
    list_display = ("alias", "number", "moved_at")
    list_select_related = ("adapter__tenant", "version")
    list_filter = (("adapter__tenant", filters.Row),)
    search_fields = ("name", "adapter__name", "adapter__tenant__slug")
    ordering = ("adapter__tenant__slug", "adapter__name", "name")
    fields = ("name", "adapter", "version", "moved_at", "history_")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("adapter__tenant", "version__adapter__tenant")

    @admin.display(description="Alias", ordering="name")
    def alias(self, alias: Alias) -> str:
        return str(alias)

    @admin.display(description="Version", ordering="version__number")
    def number(self, alias: Alias) -> str:
        return f"v{alias.version.number}"

    @admin.display(description="History")
    def history_(self, alias: Alias) -> SafeString:
        every = alias.adapter.alias_moves.filter(alias=alias.name).select_related("from_version", "to_version")
        moves = list(every[:SHOWN_MOVES])
        actors.name(moves, "actor")
        return render_to_string("console/moves.html", {"moves": moves})
