"""Filters that offer a person no row that is not theirs."""

from typing import TYPE_CHECKING, Any

from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter  # type: ignore[import-untyped]
from unfold.contrib.filters.forms import AutocompleteDropdownForm  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from console.base import ConsoleAdmin

__all__ = ["Choices", "Row"]

Choices = ChoicesDropdownFilter


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
