"""Webhooks: where a tenant is told of events, and what became of each telling."""

from typing import Any
from urllib.parse import urlsplit

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.views.decorators.debug import sensitive_variables

from audit.services import Actor
from console import display as show
from console import fields, filters
from console.access import access_of
from console.base import ConsoleAdmin, ConsoleInline
from console.site import site
from console.verbs import SecretVerb, Verb, VerbForm
from tenants.models import Role
from webhooks import services
from webhooks.models import FAMILIES, Delivery, Endpoint, State

COLOURS = {State.PENDING: "info", State.DELIVERED: "success", State.FAILED: "danger"}
EVENTS = [("*", "everything"), *((f"{family}.*", f"{family}.*") for family in FAMILIES)]


class NewEndpoint(VerbForm):
    tenant = fields.row(Endpoint._meta.get_field("tenant"))
    url = fields.text(max_length=2000, label="URL", help_text="It gets a signed POST for each event.")
    events = fields.some_of(EVENTS, initial=["*"])

    def prepare(self) -> None:
        self.fields["tenant"].queryset = self.access.tenants_as(Role.OWNER)  # type: ignore[attr-defined]


class WebhookVerb(Verb):
    role = Role.OWNER

    def done(self, row: Model) -> str:
        return f"{self.title}: {_host(self.target)}"


class CreateEndpoint(SecretVerb):
    slug, title, submit = "create", "Add a webhook", "Add"
    role = Role.OWNER
    form_class = NewEndpoint
    what = "secret"

    @sensitive_variables("secret")
    def perform(self, form: VerbForm, actor: Actor) -> HttpResponse:
        wanted = form.cleaned_data
        endpoint, secret = services.create_endpoint(wanted["tenant"], wanted["url"], wanted["events"], actor=actor)
        return self.secret_page(endpoint, secret, _host(endpoint))


class RotateSecret(SecretVerb):
    slug, title, submit, icon = "rotate", "New secret", "Make a new secret", "autorenew"
    explains = "For a day deliveries are signed with both the new secret and the old one."
    role = Role.OWNER
    what = "secret"

    @sensitive_variables("secret")
    def perform(self, form: VerbForm, actor: Actor) -> HttpResponse:
        endpoint, secret = services.rotate_secret(self.target, actor=actor)
        return self.secret_page(endpoint, secret, _host(endpoint))


class Ping(WebhookVerb):
    slug, title, submit, icon = "ping", "Send a test", "Send it", "send"
    explains = "The endpoint gets a webhook.ping, whatever it subscribes to."

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.active)

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        services.ping(self.target)
        return self.target  # type: ignore[no-any-return]


class Disable(WebhookVerb):
    slug, title, submit, icon = "disable", "Disable", "Send nothing to it", "pause"
    explains = "Nothing is sent to it until it is enabled again; what happens meanwhile it is never told."

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.active)

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.change_endpoint(self.target, active=False, actor=actor)


class Enable(WebhookVerb):
    slug, title, submit, icon = "enable", "Enable", "Send to it again", "play_arrow"

    @classmethod
    def applies(cls, target: Any) -> bool:
        return not target.active

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.change_endpoint(self.target, active=True, actor=actor)


class DeleteEndpoint(WebhookVerb):
    slug, title, submit, icon = "remove", "Delete", "Delete this webhook", "delete"
    explains = "It is sent nothing any more, and the log of its deliveries goes with it."
    danger = True

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        services.delete_endpoint(self.target, actor=actor)
        return self.target.tenant  # type: ignore[no-any-return]


class Deliveries(ConsoleInline):
    model = Delivery
    fields = readonly_fields = ("created_at", "event", "state_", "attempts", "last", "next_")
    verbose_name_plural = "Deliveries"

    @admin.display(description="State")
    def state_(self, delivery: Delivery) -> SafeString:
        return show.badge(delivery.state, COLOURS[State(delivery.state)])

    @admin.display(description="Last answer")
    def last(self, delivery: Delivery) -> str:
        if not delivery.log:
            return "-"
        last = delivery.log[-1]
        return f"{last.get('error') or last.get('status')} after {last.get('milliseconds')} ms"

    @admin.display(description="Next attempt")
    def next_(self, delivery: Delivery) -> Any:
        return delivery.next_at if delivery.state == State.PENDING else "-"


@admin.register(Endpoint, site=site)
class EndpointAdmin(ConsoleAdmin):
    tenant_path = "tenant_id"
    adds = CreateEndpoint
    verbs = (Ping, Disable, Enable, RotateSecret, DeleteEndpoint)
    inlines = (Deliveries,)
    icon = "webhook"
    list_display = ("host", "tenant", "events_", "active", "created_at")
    list_select_related = ("tenant",)
    list_filter = (("tenant", filters.Row), "active")
    search_fields = ("tenant__slug",)
    ordering = ("-created_at",)
    fields = ("host", "url", "tenant", "events_", "active", "former_until", "created_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        living = super().get_queryset(request).filter(deleted_at=None)
        return living.defer("salt", "former_salt").select_related("tenant")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """The whole URL is its owners' alone: its path or query may hold a token."""
        mine = obj is not None and access_of(request).may(Role.OWNER, obj.tenant_id)
        return [name for name in self.fields or () if mine or name != "url"]

    @admin.display(description="Webhook", ordering="url")
    def host(self, endpoint: Endpoint) -> str:
        return _host(endpoint)

    @admin.display(description="Events")
    def events_(self, endpoint: Endpoint) -> SafeString:
        return show.badges(endpoint.events)


def _host(endpoint: Endpoint) -> str:
    parts = urlsplit(endpoint.url)
    return f"{parts.scheme}://{parts.netloc}"
