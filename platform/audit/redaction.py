"""Keeps secrets out of what is recorded, by their type: never by what a field happens to be called.

A value is secret when it is wrapped in `Secret`, is pydantic's SecretStr or SecretBytes, or comes from a model field of
a secret type. What has no plain form in JSON raises, so nothing is recorded by accident of its `str()`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from pydantic import SecretBytes, SecretStr

REDACTED = "[redacted]"


class Secret:
    """Carries a value past whoever records or prints it. `reveal` is the only way to the value."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def reveal(self) -> Any:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __str__(self) -> str:
        return REDACTED

    __repr__ = __str__


SECRETS = (Secret, SecretStr, SecretBytes)


class SecretCharField(models.CharField):  # type: ignore[type-arg]
    """A CharField whose value never reaches an audit event. Its column, and so its migration, is the plain one's."""

    secret = True

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.CharField", args, kwargs


def snapshot(row: models.Model, names: Iterable[str]) -> dict[str, Any]:
    """The row's fields by name, those of a secret type wrapped."""
    fields = {name: row._meta.get_field(name) for name in names}
    values = {name: field.value_from_object(row) for name, field in fields.items()}  # type: ignore[union-attr]
    return {name: Secret(value) if getattr(fields[name], "secret", False) else value for name, value in values.items()}


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What changed, as `{"before": …, "after": …}`; empty when nothing did."""
    names = [name for name in after if name not in before or before[name] != after[name]]
    if not names and before.keys() <= after.keys():
        return {}
    names_before = [name for name in before if name in names or name not in after]
    return {"before": {name: before[name] for name in names_before}, "after": {name: after[name] for name in names}}


def plain(data: Mapping[str, Any]) -> Any:
    """The data as PostgreSQL's jsonb keeps it: secrets redacted, fractions as text, no character that it refuses.

    Fractions are text since PostgreSQL and Python don't print them alike. Raises TypeError for a type without a plain
    form, ValueError for a number that is none.
    """
    return _kept(json.loads(json.dumps(data, cls=_Encoder, allow_nan=False), parse_float=str))


def clean(text: str, longest: int) -> str:
    """Text that a request brought, as a column takes it: printable, and no longer than the column."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:longest])


class _Encoder(DjangoJSONEncoder):
    def default(self, o: Any) -> Any:
        return REDACTED if isinstance(o, SECRETS) else super().default(o)


def _kept(value: Any) -> Any:
    """Without what jsonb or UTF-8 can't hold: NUL and lone surrogates."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_kept(name): _kept(item) for name, item in value.items()}
    return [_kept(item) for item in value] if isinstance(value, list) else value
