"""Base models: registered by whoever starts the engine, shown to everybody who may be here."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from console import display as show
from console.access import access_of
from console.base import ConsoleAdmin, counted
from console.site import site
from registry.models import Adapter, BaseModel

SHAPE = ("architecture", "context_length", "vocab_size", "hidden_size", "tied")


@admin.register(BaseModel, site=site)
class BaseModelAdmin(ConsoleAdmin):
    """A base model is nobody's secret; where it lies on disk is the operators'."""

    icon = "neurology"
    list_display = ("name", "is_default", "architecture", "adapter_count", "created_at")
    list_filter = ("is_default",)
    search_fields = ("name",)
    ordering = ("name",)
    fields = ("name", "is_default", "source", "shape", "linears", "created_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        access = access_of(request)
        adapters = Adapter.objects.all() if access.operator else Adapter.objects.filter(tenant__in=access.tenants)
        return BaseModel.objects.order_by("name").annotate(adapters_=counted(adapters, "base_model"))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in self.fields or () if name != "source" or access_of(request).operator]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        access = access_of(request)
        return access.operator or bool(access.roles)

    @admin.display(description="Architecture")
    def architecture(self, base: BaseModel) -> str:
        return str(base.spec.get("architecture", "-"))

    @admin.display(description="Adapters", ordering="adapters_")
    def adapter_count(self, base: Any) -> int:
        return int(base.adapters_)

    @admin.display(description="Shape")
    def shape(self, base: BaseModel) -> SafeString:
        return show.pairs({name: base.spec[name] for name in SHAPE if name in base.spec})

    @admin.display(description="Linears")
    def linears(self, base: BaseModel) -> str:
        return f"{len(base.spec.get('linears', {}))} modules that an adapter may target"
