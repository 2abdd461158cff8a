"""Aliases: movable names. Made on an adapter's page, moved and removed here, by compare-and-set."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from audit.services import Actor
from console import fields, filters
from console.base import ConsoleAdmin
from console.site import site
from console.verbs import Verb, VerbForm
from registry import services
from registry.models import Alias, State
from tenants.models import Role


class Destination(VerbForm):
    version = fields.number_of()
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
        number, expected = form.cleaned_data["version"], form.cleaned_data["expected"]
        return services.move_alias(self.target.adapter, self.target.name, number, expected=expected, actor=actor)

    def done(self, row: Model) -> str:
        return f"{row} points to v{row.version.number}."  # type: ignore[attr-defined]


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
    verbs = (MoveAlias, DeleteAlias)
    icon = "sell"
    list_display = ("alias", "number", "moved_at")
    list_select_related = ("adapter__tenant", "version")
    list_filter = (("adapter__tenant", filters.Row),)
    search_fields = ("name", "adapter__name", "adapter__tenant__slug")
    ordering = ("adapter__tenant__slug", "adapter__name", "name")
    fields = ("name", "adapter", "version", "moved_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("adapter__tenant", "version__adapter__tenant")

    @admin.display(description="Alias", ordering="name")
    def alias(self, alias: Alias) -> str:
        return str(alias)

    @admin.display(description="Version", ordering="version__number")
    def number(self, alias: Alias) -> str:
        return f"v{alias.version.number}"
