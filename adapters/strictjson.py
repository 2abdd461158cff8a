"""Knows how to read JSON that someone else wrote: bounded, no duplicate keys, no NaN. Nothing of adapters."""

from __future__ import annotations

import json
from typing import Any


class NotStrictJson(ValueError):
    """`rule` is the finding's code: malformed-json or duplicate-key."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


def loads(raw: bytes) -> Any:
    """Parse UTF-8 JSON. The caller bounds len(raw). Raises NotStrictJson."""
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
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
