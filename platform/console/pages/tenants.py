"""Tenants and who belongs to them. Members see their own; only operators change them."""

from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.http import urlencode

from audit.services import Actor
from console import fields
from console.base import ConsoleAdmin, ConsoleInline, counted
from console.site import site
from console.verbs import Verb, VerbForm
from registry.models import Adapter
from tenants import services
from tenants.models import Member, Role, Tenant

SLUG_HELP = "Names the tenant in model names and addresses; it never changes. Lower-case letters, digits and hyphens."
WEIGHT_HELP = "Share of the engine relative to other tenants; 1 is usual."


class NewTenant(VerbForm):
    slug = fields.text(max_length=63, help_text=SLUG_HELP)
    name = fields.text(max_length=200)
    weight = fields.number(initial=1.0, min_value=0.01, max_value=1000, help_text=WEIGHT_HELP)


class CreateTenant(Verb):
    slug, title, submit = "create", "Create a tenant", "Create"
    form_class = NewTenant

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.create_tenant(**form.cleaned_data, actor=actor)


class TenantChanges(VerbForm):
    name = fields.text(max_length=200)
    weight = fields.number(min_value=0.01, max_value=1000, help_text=WEIGHT_HELP)
    quota_bytes = fields.whole(min_value=0, max_value=2**62, help_text="Of adapters, and coming in.")
    quota_versions = fields.whole(min_value=0, max_value=2**31 - 1)
    quota_uploads = fields.whole(min_value=0, max_value=2**31 - 1)
    quota_pins = fields.whole(min_value=0, max_value=2**15 - 1)
    quota_adapters = fields.whole(min_value=0, max_value=2**31 - 1)
    quota_keys = fields.whole(min_value=0, max_value=2**31 - 1, help_text="Of those that work.")
    quota_evaluation_bytes = fields.whole(min_value=0, max_value=2**62, help_text="Of evaluation sets.")
    active = fields.switch(help_text="An inactive tenant's keys are refused.")

    def prepare(self) -> None:
        self.initial = {name: getattr(self.target, name) for name in self.fields}


class ChangeTenant(Verb):
    slug, title, submit, icon = "edit", "Edit", "Save", "edit"
    form_class = TenantChanges

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.change_tenant(self.target, **form.cleaned_data, actor=actor)


class NewMember(VerbForm):
    username = fields.text(max_length=150, help_text="Of an account that exists; accounts are made under People.")
    role = fields.one_of(Role.choices, initial=Role.VIEWER, help_text="Viewers read, editors upload, owners hold keys.")

    def clean_username(self) -> Any:
        user = get_user_model().objects.filter(username=self.cleaned_data["username"]).first()
        if user is None:
            self.add_error("username", "There is no such account.")
        return user


class AddMember(Verb):
    slug, title, submit, icon = "add-member", "Add a member", "Add", "person_add"
    explains = "Somebody who is a member already gets the role that you choose here."
    form_class = NewMember

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        user, role = form.cleaned_data["username"], Role(form.cleaned_data["role"])
        services.add_member(self.target, user, role, actor=actor)
        return self.target  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"The member of {row} is set."


class Leaver(VerbForm):
    member = fields.number_of()

    def prepare(self) -> None:
        members = self.target.members.select_related("user")
        choices = [(member.user_id, f"{member.user}, {member.role}") for member in members]
        self.fields["member"].choices = choices  # type: ignore[attr-defined]


class RemoveMember(Verb):
    slug, title, submit, icon = "remove-member", "Remove a member", "Remove", "person_remove"
    explains = "They see nothing of the tenant from their next request on. Their account stays, and so do keys."
    form_class = Leaver
    danger = True

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.members.exists())

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        self.user = get_user_model().objects.get(pk=form.cleaned_data["member"])
        services.remove_member(self.target, self.user, actor=actor)
        return self.target  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"{self.user} is no member of {row} any more."


class GoIssueKey(Verb):
    """Leads to the keys' own form, with the tenant filled in."""

    slug, title, submit, icon = "issue-key", "Issue a key", "", "key"
    role = Role.OWNER

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return HttpResponseRedirect(f"{reverse('admin:apikeys_apikey_add')}?{urlencode({'tenant': self.target.pk})}")

    post = get


class Members(ConsoleInline):
    model = Member
    fields = readonly_fields = ("username", "role", "created_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("user", "tenant")

    @admin.display(description="Person")
    def username(self, member: Member) -> str:
        return str(member.user)


@admin.register(Tenant, site=site)
class TenantAdmin(ConsoleAdmin):
    tenant_path = "pk"
    adds = CreateTenant
    verbs = (ChangeTenant, AddMember, RemoveMember, GoIssueKey)
    icon = "domain"
    inlines = (Members,)
    list_display = ("slug", "name", "active", "weight", "adapter_count", "member_count", "created_at")
    list_filter = ("active",)
    search_fields = ("slug", "name")
    ordering = ("slug",)
    fields = (
        *("slug", "name", "active", "weight", "quota_bytes", "quota_versions", "quota_uploads"),
        *("quota_adapters", "quota_keys", "quota_evaluation_bytes", "quota_pins"),
        *("requires_signature", "id", "created_at"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        counts = {
            "adapters_": counted(Adapter.objects.all(), "tenant"),
            "members_": counted(Member.objects.all(), "tenant"),
        }
        rows: QuerySet[Any] = super().get_queryset(request).annotate(**counts)
        return rows

    @admin.display(description="Adapters", ordering="adapters_")
    def adapter_count(self, tenant: Any) -> int:
        return int(tenant.adapters_)

    @admin.display(description="Members", ordering="members_")
    def member_count(self, tenant: Any) -> int:
        return int(tenant.members_)
