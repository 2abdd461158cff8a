"""Knows how a management body, query and path are read: bounded, and with no text in them that PostgreSQL can't keep.

Raises DRF's errors, which leave as a 400 in the API's shape. Knows no views and no fields.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rest_framework.exceptions import ParseError, ValidationError
from rest_framework.parsers import JSONParser, MultiPartParser

from adapters.strictjson import NotStrictJson, loads

DEEPEST = 64  # lists and objects in each other: nothing that we take has more, and walks over it may recurse


class StrictJson(JSONParser):
    """JSON without duplicate keys, NaN, more than DEEPEST levels, NUL or lone surrogates."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        try:
            parsed = loads(stream.read())
        except NotStrictJson as error:
            if error.place:
                raise _unstorable(error.place) from None
            raise ParseError(f"The body is not valid JSON: {error}.") from None
        check(parsed)
        return parsed


class StrictForm(MultiPartParser):
    """A form whose texts, the files' names not among them, could be kept."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        try:
            form: Any = super().parse(stream, media_type, parser_context)
        except (LookupError, UnicodeError) as error:  # a part that names a character set which is none
            raise ParseError("The form's parts are not valid.") from error
        check_pairs(form.data.lists())
        return form


def check(value: Any) -> None:
    """Raise ParseError for what is nested too deeply, ValidationError by the place of what could not be kept."""
    level: list[tuple[str, Any]] = [("", value)]
    for _ in range(DEEPEST + 1):
        for place, found in level:
            if isinstance(found, str) and not is_storable(found):
                raise _unstorable(place)
        level = [inner for place, found in level for inner in _within(place, found)]
        if not level:
            return
    raise ParseError(f"The body is nested too deeply: {DEEPEST} levels are allowed.")


def check_pairs(pairs: Iterable[tuple[str, Iterable[Any]]]) -> None:
    """The same of a query's or a form's names and values."""
    for name, values in pairs:
        if not is_storable(name) or not all(is_storable(value) for value in values if isinstance(value, str)):
            raise _unstorable(name)


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can keep it: neither NUL nor half a character in it."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _within(place: str, value: Any) -> list[tuple[str, Any]]:
    """What a list or an object holds, its keys among it, each with the place where it is."""
    if isinstance(value, Mapping):
        named = [(f"{place}.{key}" if place else str(key), key, inner) for key, inner in value.items()]
        return [(path, found) for path, key, inner in named for found in (key, inner)]
    if isinstance(value, list):
        return [(f"{place}[{number}]", inner) for number, inner in enumerate(value)]
    return []


def _unstorable(place: str) -> ValidationError:
    shown = "".join(letter for letter in place[:200] if letter.isprintable())
    return ValidationError({shown: "Zero characters and halves of characters are no text."})
