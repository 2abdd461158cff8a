"""Audit events: what happened, when, to what and by whom. Read only, for everybody."""

from django.contrib import admin
from django.utils.safestring import SafeString

from audit.models import Event
from console import display as show
from console import filters
from console.base import ConsoleAdmin
from console.site import site


@admin.register(Event, site=site)
class EventAdmin(ConsoleAdmin):
    tenant_path = "tenant_id"
    icon = "receipt_long"
    actor_field = "actor"
    linked = ("target__exact",)
    found = False  # every row of every kind has events; the list has a search of its own
    list_display = ("created_at", "action_", "target", "by", "tenant", "address")
    list_display_links = ("created_at", "action_")
    list_select_related = ("tenant",)
    list_filter = (("action", filters.Choices), ("tenant", filters.Row), filters.ActorKind, "created_at")
    search_fields = ("target", "actor_id", "address", "request_id")
    search_help_text = "Target, actor, address or request id"
    ordering = ("-id",)
    fields = (
        *("created_at", "action_", "target", "by", "actor", "tenant", "address", "user_agent", "request_id", "data_"),
        *("number", "previous_", "hash_"),
    )

    def target_of(self, obj: Event) -> str:
        return obj.target

    @admin.display(description="Action", ordering="action")
    def action_(self, event: Event) -> SafeString:
        return show.action(event.action)

    @admin.display(description="Data")
    def data_(self, event: Event) -> SafeString:
        return show.pairs(event.data)

    @admin.display(description="Hash of the event before")
    def previous_(self, event: Event) -> SafeString:
        return show.code(event.previous)

    @admin.display(description="Hash")
    def hash_(self, event: Event) -> SafeString:
        return show.code(event.hash)
