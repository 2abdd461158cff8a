"""The console's form fields, in unfold's clothes. Knows no app: a form narrows `row` to what its person may choose."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib.admin.widgets import AutocompleteSelect
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold import widgets  # type: ignore[import-untyped]

from console.site import site

Choices = Iterable[tuple[Any, str]]


def text(**options: Any) -> forms.CharField:
    return forms.CharField(widget=widgets.UnfoldAdminTextInputWidget(), **options)


def paragraph(**options: Any) -> forms.CharField:
    return forms.CharField(widget=widgets.UnfoldAdminTextareaWidget(), **options)


def number(**options: Any) -> forms.FloatField:
    return forms.FloatField(widget=widgets.UnfoldAdminTextInputWidget(), **options)


def whole(**options: Any) -> forms.IntegerField:
    return forms.IntegerField(widget=widgets.UnfoldAdminIntegerFieldWidget(), **options)


def email(**options: Any) -> forms.EmailField:
    return forms.EmailField(widget=widgets.UnfoldAdminEmailInputWidget(), **options)


def switch(**options: Any) -> forms.BooleanField:
    return forms.BooleanField(widget=widgets.UnfoldBooleanSwitchWidget(), required=False, **options)


def secret(**options: Any) -> forms.CharField:
    widget = widgets.UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})
    return forms.CharField(widget=widget, strip=False, **options)


def one_of(choices: Choices, **options: Any) -> forms.ChoiceField:
    return forms.ChoiceField(choices=list(choices), widget=widgets.UnfoldAdminSelectWidget(), **options)


def number_of(choices: Choices = (), **options: Any) -> forms.TypedChoiceField:
    widget = widgets.UnfoldAdminSelectWidget()
    return forms.TypedChoiceField(choices=list(choices), coerce=int, empty_value=None, widget=widget, **options)


def some_of(choices: Choices, **options: Any) -> forms.MultipleChoiceField:
    widget = widgets.UnfoldAdminCheckboxSelectMultipleWidget()
    return forms.MultipleChoiceField(choices=list(choices), widget=widget, **options)


def row(foreign_key: Any, **options: Any) -> "forms.ModelChoiceField[Any]":
    """A row of the model that the column points to, found by typing. Offers none until its queryset is set."""
    none = foreign_key.remote_field.model._default_manager.none()
    return forms.ModelChoiceField(queryset=none, widget=RowSelect(foreign_key, site), **options)


def names(**options: Any) -> "Names":
    return Names(widget=widgets.UnfoldAdminTextInputWidget(), required=False, **options)


def file(**options: Any) -> forms.FileField:
    return forms.FileField(widget=FileInput(), **options)


def files(**options: Any) -> "Files":
    return Files(**options)


class RowSelect(AutocompleteSelect):
    """Django's looks a chosen key up without asking whether it is one; an address or a form may hold anything."""

    def optgroups(self, name: str, value: Any, attr: Any = None) -> Any:
        return super().optgroups(name, [key for key in value if self._is_key(key)], attr)

    def _is_key(self, key: Any) -> bool:
        try:
            self.field.remote_field.model._meta.pk.to_python(key)
        except forms.ValidationError:
            return False
        return True


class Names(forms.CharField):
    """Names with commas or spaces between them, as a list."""

    def clean(self, value: Any) -> Any:
        return super().clean(value).replace(",", " ").split()


class FileInput(forms.FileInput):
    def __init__(self) -> None:
        super().__init__(attrs={"class": "ly-files"})

    def render(self, *args: Any, **kwargs: Any) -> SafeString:
        """Unfold's script writes a chosen file's name into the nearest text input, and stumbles where there is none."""
        return format_html('<input type="text" hidden disabled>{}', super().render(*args, **kwargs))


class FilesInput(FileInput):
    allow_multiple_selected = True


class Files(forms.FileField):
    """Any number of files from one input, as a list."""

    widget = FilesInput

    def clean(self, data: Any, initial: Any = None) -> Any:
        given: list[Any] = data if isinstance(data, list) else [data] if data else []
        return [super(Files, self).clean(file, initial) for file in given] or super().clean(None, initial)
