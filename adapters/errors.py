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
from dataclasses import dataclass, fields, replace
from typing import Literal

from adapters.folding import folded

SHOWN_CHARACTERS = 500
SHOWN_FINDINGS = 200
SHOWN_VALUES = 3


def printable(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """`text` with the middle cut out beyond `limit` and what is unprintable escaped: safe for logs, pages and jsonb."""
    half = limit // 2
    cut = text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


@dataclass(frozen=True)
class Finding:
    """One thing to say of an upload. `rule` is a stable kebab-case code; `message` one sentence to act on.

    `severity`: an `error` refuses; a `warning` says what may not be meant so, a `note` what else is to be known.
    `tensor`: the tensor or module that it is about, with which such a message begins (`about`); `count`: of how many it
    is said, which `tensor` then tells in short.
    """

    rule: str
    message: str
    tensor: str = ""
    expected: str = ""
    found: str = ""
    severity: Literal["error", "warning", "note"] = "error"
    count: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), str):
                object.__setattr__(self, field.name, printable(value))

    @classmethod
    def about(cls, subject: str, rule: str, what: str, expected: str = "", found: str = "") -> Finding:
        """One of a kind that many tensors or modules may have; `fold` makes one of them all."""
        return cls(rule, f"{subject}: {what}", subject, expected, found)

    @property
    def what(self) -> str:
        """The message without whom it is about."""
        return self.message.removeprefix(f"{self.tensor}: ")


def fold(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The same with one finding where a rule says the same of many, at the place of the first."""
    kinds: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.rule, finding.severity, finding.what), []).append(finding)
    return tuple(_one(kind) for kind in kinds.values())


def _one(kind: list[Finding]) -> Finding:
    first = kind[0]
    if len(kind) == 1 or not first.tensor:
        return first
    subjects, count = folded(finding.tensor for finding in kind), sum(finding.count for finding in kind)
    return replace(
        first,
        message=f"In {count} places ({subjects}): {first.what}",
        tensor=subjects,
        expected=_values(finding.expected for finding in kind),
        found=_values(finding.found for finding in kind),
        count=count,
    )


def _values(values: Iterable[str]) -> str:
    """What differs, in short."""
    different = list(dict.fromkeys(values))
    return ", ".join(different[:SHOWN_VALUES]) + (" …" if len(different) > SHOWN_VALUES else "")


class AdapterError(Exception):
    """Everything that this package raises on purpose."""


class Rejected(AdapterError):
    """An upload is refused. `findings` holds every reason, folded; at most SHOWN_FINDINGS and how many are left."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        found = fold(findings)
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
