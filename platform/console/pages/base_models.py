"""Base models: registered by whoever starts the engine, shown to everybody who may be here."""

from typing import Any

from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from console import display as show
from console.access import access_of
from console.base import ConsoleAdmin
from console.site import site
from registry.models import BaseModel

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
        mine = Q() if access.operator else Q(adapters__tenant__in=access.tenants)
        return BaseModel.objects.order_by("name").annotate(adapters_=Count("adapters", filter=mine))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in self.fields or () if name != "source" or access_of(request).operator]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        access = access_of(request)
        return access.operator or bool(access.roles)

    @display(description="Architecture")
    def architecture(self, base: BaseModel) -> str:
        return str(base.spec.get("architecture", "-"))

    @display(description="Adapters", ordering="adapters_")
    def adapter_count(self, base: Any) -> int:
        return int(base.adapters_)

    @display(description="Shape")
    def shape(self, base: BaseModel) -> SafeString:
        return show.pairs({name: base.spec[name] for name in SHAPE if name in base.spec})

    @display(description="Linears")
    def linears(self, base: BaseModel) -> str:
        return f"{len(base.spec.get('linears', {}))} modules that an adapter may target"

