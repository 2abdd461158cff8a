"""Knows how to read JSON that someone else wrote: bounded, no duplicate keys, no NaN, no text that databases refuse.
Nothing of adapters."""

from __future__ import annotations

import json
import re
from typing import Any, Final

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
"""What UTF-8 or PostgreSQL has no place for, though JSON can spell it, as an escape alone."""
_SUSPICIOUS: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class NotStrictJson(ValueError):
    """`rule` is the finding's code: malformed-json, duplicate-key or bad-text; `place` is where a bad text is."""

    def __init__(self, rule: str, message: str, place: str = "") -> None:
        super().__init__(message)
        self.rule = rule
        self.place = place


def loads(raw: bytes) -> Any:
    """Parse UTF-8 JSON. The caller bounds len(raw). Raises NotStrictJson."""
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if _SUSPICIOUS.search(raw):
            _refuse_bad_text(document)
        return document
    except NotStrictJson:
        raise
    except RecursionError as error:
        raise NotStrictJson("malformed-json", "it is nested too deeply") from error
    except ValueError as error:
        raise NotStrictJson("malformed-json", str(error)) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise NotStrictJson("duplicate-key", f"it has the key {ascii(key)[:200]} twice")
        result[key] = value
    return result


def _refuse_constant(name: str) -> Any:
    raise NotStrictJson("malformed-json", f"{name} isn't JSON")


def _refuse_bad_text(document: Any) -> None:
    """Look at every key and every string, wherever they lie."""
    waiting = [("", document)]
    while waiting:
        place, value = waiting.pop()
        match value:
            case str() if found := _UNSTORABLE.search(value):
                what = "a zero character" if found[0] == "\0" else "half of a surrogate pair"
                where = f"{place[:200]} holds" if place else "it holds"
                message = f"{where} {what} ({ascii(found[0])[1:-1]}), which no text may"
                raise NotStrictJson("bad-text", message, place)
            case dict():
                for key, item in value.items():
                    waiting += [
                        (f"the key {ascii(key)[:100]} in {place or 'the object'}", key),
                        (_at(place, key), item),
                    ]
            case list():
                waiting += [(f"{place}[{index}]", item) for index, item in enumerate(value)]


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
