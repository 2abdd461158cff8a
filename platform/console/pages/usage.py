"""What was used, by day, key, adapter and purpose. Read only, for everybody."""

from django.contrib import admin

from console import filters
from console.base import ConsoleAdmin
from console.site import site
from metering.models import DailyUsage


@admin.register(DailyUsage, site=site)
class UsageAdmin(ConsoleAdmin):
    tenant_path = "tenant_id"
    icon = "monitoring"
    found = False
    list_display = ("day", "tenant", "served", "purpose", "requests", "failed", "prompt", "cached", "completion", "key")
    list_select_related = ("tenant",)
    list_filter = (("tenant", filters.Row), ("purpose", filters.Choices), "day")
    search_fields = ("adapter", "tenant__slug")
    search_help_text = "Adapter or tenant"
    ordering = ("-day", "-pk")
    fields = ("day", "tenant", "served", "purpose", "key", "requests", "failed", "prompt", "cached", "completion")

    @admin.display(description="Adapter", ordering="adapter")
    def served(self, usage: DailyUsage) -> str:
        return usage.adapter or "the base model"
