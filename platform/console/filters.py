"""Filters that offer a person no row that is not theirs."""

from typing import TYPE_CHECKING, Any

from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter, DropdownFilter  # type: ignore[import-untyped]
from unfold.contrib.filters.forms import AutocompleteDropdownForm  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from console.base import ConsoleAdmin

__all__ = ["ActorKind", "Choices", "Row"]

Choices = ChoicesDropdownFilter


class ActorKind(DropdownFilter):  # type: ignore[misc]  # untyped
    """By what kind of actor, without asking a long table which kinds it holds."""

    title = "actor"
    parameter_name = "actor_kind"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [("user", "a person"), ("key", "an API key"), ("system", "the platform")]

    def queryset(self, request: Any, queryset: Any) -> Any:
        return queryset.filter(actor_kind=self.value()) if self.value() else queryset


class RowForm(AutocompleteDropdownForm):  # type: ignore[misc]  # untyped
    """Unfold's names the chosen row whoever's it is; this one looks it up as the row's own page would."""

    def __init__(self, request: Any, *args: Any, field: Any, model_admin: "ConsoleAdmin", **kwargs: Any) -> None:
        super().__init__(request, *args, field=field, model_admin=model_admin, **kwargs)
        rows = model_admin.admin_site.get_model_admin(field.remote_field.model).get_queryset(request)
        for choice in self.fields.values():
            choice.queryset = rows


class Row(AutocompleteSelectFilter):  # type: ignore[misc]  # untyped
    """By a related row, found by typing: there may be thousands."""

    form_class = RowForm
