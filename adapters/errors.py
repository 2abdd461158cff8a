"""Knows how an adapter, a base model or a stored version can be wrong, and says it; never HTTP, tenants or Django.

AdapterError
├── Rejected              an upload that is refused, with every finding
├── BaseModelError
│   ├── BaseModelMissing      nothing usable at the given folder or hub id
│   └── BaseModelUnsupported  there is a model, but not a causal language model that Transformers loads by itself
├── MergeError
│   ├── Unmergeable           what was asked can't be merged exactly; `rule` says why
│   └── Unfaithful            the merged model doesn't answer as the adapter does
└── StoreError
    ├── Missing           the store has no such version, or not all of it
    └── Corrupt           what is stored isn't what its digest says
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

SHOWN_CHARACTERS = 500
SHOWN_FINDINGS = 200


def printable(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """`text` with the middle cut out beyond `limit` and what is unprintable escaped: safe for logs, pages and jsonb."""
    half = limit // 2
    cut = text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


@dataclass(frozen=True)
class Finding:
    """One reason for a refusal. `rule` is a stable kebab-case code; `message` one sentence that a person can act on.

    `severity`: an `error` refuses; a `note` says something about the errors.
    """

    rule: str
    message: str
    tensor: str = ""
    expected: str = ""
    found: str = ""
    severity: Literal["error", "note"] = "error"

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, printable(getattr(self, field.name)))


class AdapterError(Exception):
    """Everything that this package raises on purpose."""


class Rejected(AdapterError):
    """An upload is refused. `findings` holds every reason, at most SHOWN_FINDINGS and then how many more there are."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        found = tuple(findings)
        assert found, "a refusal needs a reason"
        self.findings = found[:SHOWN_FINDINGS]
        if hidden := len(found) - len(self.findings):
            self.findings += (Finding("more", f"{hidden} more findings are not listed here.", severity="note"),)
        super().__init__(self.findings)

    @classmethod
    def because(cls, rule: str, message: str, *, tensor: str = "", expected: str = "", found: str = "") -> Rejected:
        return cls([Finding(rule, message, tensor, expected, found)])

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(finding.rule for finding in self.findings)

    def __str__(self) -> str:
        return " ".join(f"[{finding.rule}] {finding.message}" for finding in self.findings)


class BaseModelError(AdapterError):
    pass


class BaseModelMissing(BaseModelError):
    pass


class BaseModelUnsupported(BaseModelError):
    pass


class MergeError(AdapterError):
    """`finding` says what is wrong, and what to do about it."""

    def __init__(self, rule: str, message: str, *, tensor: str = "", expected: str = "", found: str = "") -> None:
        self.finding = Finding(rule, message, tensor, expected, found)
        super().__init__(f"[{rule}] {self.finding.message}")

    @property
    def rule(self) -> str:
        return self.finding.rule


class Unmergeable(MergeError):
    pass


class Unfaithful(MergeError):
    pass


class StoreError(AdapterError):
    pass


class Missing(StoreError):
    pass


class Corrupt(StoreError):
    pass
