"""Adapters: a name, its versions and the aliases that point to them."""

from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from audit.services import Actor
from console import display as show
from console import fields, filters
from console.base import ConsoleAdmin, ConsoleInline, counted
from console.site import site
from console.verbs import Verb, VerbForm
from registry import services
from registry.models import STABLE, Adapter, Alias, State, Version
from tenants.models import Role


class NewAdapter(VerbForm):
    tenant = fields.row(Adapter._meta.get_field("tenant"))
    name = fields.text(max_length=63, help_text="Lower-case letters, digits and inner dots, hyphens, underscores.")

    def prepare(self) -> None:
        self.fields["tenant"].queryset = self.access.tenants_as(Role.EDITOR)  # type: ignore[attr-defined]


class CreateAdapter(Verb):
    slug, title, submit = "create", "Create an adapter", "Create"
    explains = "A name without weights yet; upload its first version next."
    role = Role.EDITOR
    form_class = NewAdapter

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.create_adapter(form.cleaned_data["tenant"], form.cleaned_data["name"], actor=actor)


class GoUpload(Verb):
    """Leads to the versions' own form, with the adapter filled in."""

    slug, title, submit, icon = "upload", "Upload a version", "", "upload"
    role = Role.EDITOR

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return HttpResponseRedirect(f"{reverse('admin:registry_version_add')}?{urlencode({'adapter': self.target.pk})}")

    post = get


class NewAlias(VerbForm):
    name = fields.text(max_length=63, help_text=f"“{STABLE}” is what the adapter's bare name means.")
    version = fields.number_of()

    def prepare(self) -> None:
        ready = self.target.versions.filter(state=State.READY).values_list("number", flat=True)
        self.fields["version"].choices = [(number, f"v{number}") for number in ready]  # type: ignore[attr-defined]


class CreateAlias(Verb):
    slug, title, submit, icon = "new-alias", "Create an alias", "Create", "new_label"
    role = Role.EDITOR
    form_class = NewAlias

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        wanted = form.cleaned_data
        return services.move_alias(self.target, wanted["name"], wanted["version"], expected=None, actor=actor)


class DeleteAdapter(Verb):
    slug, title, submit, icon = "remove", "Delete", "Delete this adapter", "delete"
    explains = "Only an adapter without versions, or whose versions are rejected or deleted, can be deleted."
    role = Role.OWNER
    danger = True

    @classmethod
    def applies(cls, target: Any) -> bool:
        return not target.versions.exclude(state__in=[State.REJECTED, State.DELETED]).exists()

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        services.delete_adapter(self.target, actor=actor)
        return self.target.tenant  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"{self.target} is deleted."


class Versions(ConsoleInline):
    model = Version
    fields = readonly_fields = ("number_", "state_", "digest_", "rank", "size_", "created_at")
    verbose_name_plural = "Versions"

    @admin.display(description="Version")
    def number_(self, version: Version) -> SafeString:
        return show.link(version, f"v{version.number}")

    @admin.display(description="State")
    def state_(self, version: Version) -> SafeString:
        return show.state(version.state)

    @admin.display(description="Digest")
    def digest_(self, version: Version) -> SafeString:
        return show.short_digest(version.digest)

    @admin.display(description="Rank")
    def rank(self, version: Version) -> str:
        return show.rank(version.summary)

    @admin.display(description="Size")
    def size_(self, version: Version) -> str:
        return show.size(version.size)


class Aliases(ConsoleInline):
    model = Alias
    fields = readonly_fields = ("name_", "number", "moved_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("version", "adapter__tenant")

    @admin.display(description="Name")
    def name_(self, alias: Alias) -> SafeString:
        return show.link(alias, alias.name)

    @admin.display(description="Version")
    def number(self, alias: Alias) -> SafeString:
        return show.link(alias.version, f"v{alias.version.number}")


@admin.register(Adapter, site=site)
class AdapterAdmin(ConsoleAdmin):
    tenant_path = "tenant_id"
    adds = CreateAdapter
    verbs = (GoUpload, CreateAlias, DeleteAdapter)
    icon = "tune"
    inlines = (Aliases, Versions)
    list_display = ("name", "tenant", "base_model", "ready", "total", "created_at")
    list_select_related = ("tenant", "base_model")
    list_filter = (("tenant", filters.Row), ("base_model", filters.Row))
    search_fields = ("name", "tenant__slug")
    ordering = ("tenant__slug", "name")
    fields = ("name", "tenant", "base_model", "id", "created_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        versions = Version.objects.all()
        counts = {
            "ready_": counted(versions.filter(state=State.READY), "adapter"),
            "total_": counted(versions, "adapter"),
        }
        rows: QuerySet[Any] = super().get_queryset(request).select_related("tenant", "base_model").annotate(**counts)
        return rows

    @admin.display(description="Ready versions", ordering="ready_")
    def ready(self, adapter: Any) -> int:
        return int(adapter.ready_)

    @admin.display(description="All versions", ordering="total_")
    def total(self, adapter: Any) -> int:
        return int(adapter.total_)
