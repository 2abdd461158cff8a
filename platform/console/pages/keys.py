"""API keys. The plaintext is on the page that answers the form, and nowhere before or after."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.safestring import SafeString
from django.views.decorators.debug import sensitive_variables

from apikeys import services
from apikeys.models import ApiKey, Scope
from audit.services import Actor
from console import display as show
from console import fields, filters
from console.base import ConsoleAdmin
from console.site import site
from console.verbs import SecretVerb, Verb, VerbForm
from tenants.models import Role

DAYS = [("", "Never"), (7, "In 7 days"), (30, "In 30 days"), (90, "In 90 days"), (365, "In a year")]
HOURS = [(0, "At once"), (1, "In an hour"), (24, "In a day"), (168, "In a week")]


class NewKey(VerbForm):
    tenant = fields.row(ApiKey._meta.get_field("tenant"), required=False)
    name = fields.text(max_length=200, help_text="For whom or what the key is.")
    scopes = fields.some_of([(scope, scope) for scope in Scope.values], initial=[Scope.INFERENCE])
    adapters = fields.names(help_text="Names of the adapters that it may use, with spaces between; none: all.")
    expires = fields.number_of(DAYS, required=False)

    def prepare(self) -> None:
        self.fields["tenant"].queryset = self.access.tenants_as(Role.OWNER)  # type: ignore[attr-defined]
        if self.access.operator:
            self.fields["tenant"].help_text = "None for an operator's key, whose one scope is “platform”."
        else:
            self.fields["tenant"].required = True
            mine = [(scope, scope) for scope in Scope.values if scope != Scope.PLATFORM]
            self.fields["scopes"].choices = mine  # type: ignore[attr-defined]


class KeyVerb(SecretVerb):
    what = "key"

    def shown(self, key: ApiKey, plaintext: str) -> HttpResponse:
        return self.secret_page(key, plaintext, f"{key.name}, for {key.tenant}" if key.tenant else key.name)


class IssueKey(KeyVerb):
    slug, title, submit = "issue", "Issue a key", "Issue"
    role = Role.OWNER
    form_class = NewKey

    def get_initial(self) -> dict[str, Any]:
        return {"tenant": self.request.GET["tenant"]} if "tenant" in self.request.GET else {}

    @sensitive_variables("plaintext")
    def perform(self, form: VerbForm, actor: Actor) -> HttpResponse:
        wanted = form.cleaned_data
        days = wanted["expires"]
        key, plaintext = services.issue(
            wanted["tenant"],
            name=wanted["name"],
            scopes=wanted["scopes"],
            adapters=wanted["adapters"],
            expires_at=timezone.now() + timedelta(days=days) if days else None,
            actor=actor,
        )
        return self.shown(key, plaintext)


class Grace(VerbForm):
    grace = fields.number_of(HOURS, initial=24, label="The old key ends", help_text="Until then both work.")


class RotateKey(KeyVerb):
    slug, title, submit, icon = "rotate", "Rotate", "Rotate", "autorenew"
    explains = "A new key that may do the same takes this one's place."
    role = Role.OWNER
    form_class = Grace

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.is_live)

    @sensitive_variables("plaintext")
    def perform(self, form: VerbForm, actor: Actor) -> HttpResponse:
        grace = timedelta(hours=form.cleaned_data["grace"])
        key, plaintext = services.rotate(self.target, grace=grace, actor=actor)
        return self.shown(key, plaintext)


class RevokeKey(Verb):
    slug, title, submit, icon = "revoke", "Revoke", "Revoke this key", "block"
    explains = "Requests with this key are refused from now on. This can't be undone."
    role = Role.OWNER
    danger = True

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.revoked_at is None

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.revoke(self.target, actor=actor)

    def done(self, row: Model) -> str:
        return f"{row} is revoked."


@admin.register(ApiKey, site=site)
class ApiKeyAdmin(ConsoleAdmin):
    tenant_path = "tenant_id"
    adds = IssueKey
    verbs = (RotateKey, RevokeKey)
    icon = "key"
    list_display = ("name", "prefix_", "tenant", "status", "scopes_", "last_used_at", "expires_at", "created_at")
    list_select_related = ("tenant",)
    list_filter = (("tenant", filters.Row), ("revoked_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "prefix", "tenant__slug")
    ordering = ("-created_at",)
    fields = (
        *("name", "prefix_", "tenant", "status", "scopes_", "adapters_"),
        *("created_at", "last_used_at", "expires_at", "revoked_at"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer("mac").select_related("tenant")

    def target_of(self, obj: ApiKey) -> str:
        return f"key:{obj.pk}"

    @admin.display(description="Begins with", ordering="prefix")
    def prefix_(self, key: ApiKey) -> SafeString:
        return show.line(f"ly_{key.prefix}_…")

    @admin.display(description="Status")
    def status(self, key: ApiKey) -> SafeString:
        return show.key_status(key)

    @admin.display(description="Scopes")
    def scopes_(self, key: ApiKey) -> SafeString:
        return show.badges(key.scopes)

    @admin.display(description="Adapters")
    def adapters_(self, key: ApiKey) -> str:
        return ", ".join(key.adapters) or "all"
