"""Knows what an evaluation set looks like as a file: JSON Lines, read strictly and within bounds; no database.

{"messages": [{"role": "user", "content": "…"}], "scorer": "exact", "expected": "…", "max_tokens": 64}

`expected` is a text, for json-schema the schema. `max_tokens` bounds the answer; log-likelihood, which generates
nothing, takes none.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapters.strictjson import NotStrictJson, loads
from evaluations.errors import Fault, SetMalformed
from evaluations.models import Measure, Scorer

MAX_LINES = 10_000
MAX_BYTES = 8 * 2**20
MAX_LINE = 128 * 2**10  # bytes
MAX_TOKENS = 4_096  # of one answer
MAX_ALL_TOKENS = 2_000_000  # of all answers
MAX_MESSAGES = 64
MAX_EXPECTED = 32 * 2**10  # characters
DEFAULT_TOKENS = 256
ROLES = ("system", "user", "assistant")
TOP = re.compile(r"[.\[]")  # what ends a field's name in a place
FIELDS = {"messages", "expected", "scorer", "max_tokens"}


@dataclass(frozen=True, slots=True)
class Line:
    """One item of a set. For log-likelihood `max_tokens` is a bound of the expected answer's tokens: its bytes."""

    number: int
    messages: list[dict[str, str]]
    scorer: str
    expected: Any
    max_tokens: int

    @property
    def measure(self) -> Measure:
        return Measure.LOG_LIKELIHOOD if self.scorer == Scorer.LOG_LIKELIHOOD else Measure.ACCURACY


def read(raw: bytes) -> list[Line]:
    """Every line of the file. Raises SetMalformed with the faults of all of them."""
    if len(raw) > MAX_BYTES:
        raise SetMalformed([Fault(0, "", f"it may have {MAX_BYTES:,} bytes at most")])
    rows = [(number, row) for number, row in enumerate(raw.split(b"\n"), 1) if row.strip()]
    if len(rows) > MAX_LINES:
        raise SetMalformed([Fault(0, "", f"it may have {MAX_LINES:,} lines at most")])
    read = [_line(number, row) for number, row in rows]
    faults = [fault for found in read if isinstance(found, list) for fault in found]
    lines = [line for line in read if isinstance(line, Line)]
    faults += [] if faults else list(_faults_together(lines))
    if faults:
        raise SetMalformed(faults)
    return lines


def digest(lines: Sequence[Line]) -> str:
    """The identity of what the lines say: blank lines, spaces and the order of keys do not count."""
    whole = hashlib.sha256()
    for line in lines:
        said = {name: value for name, value in asdict(line).items() if name != "number"}
        whole.update(json.dumps(said, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return f"sha256:{whole.hexdigest()}"


def _line(number: int, row: bytes) -> Line | list[Fault]:
    """The line, or what is wrong with it."""
    if len(row) > MAX_LINE:
        return [Fault(number, "", f"it may have {MAX_LINE:,} bytes at most")]
    try:
        data = loads(row)
    except NotStrictJson as error:
        return [Fault(number, TOP.split(error.place)[0], str(error))]
    if not isinstance(data, dict):
        return [Fault(number, "", "it must be a JSON object")]
    if faults := [Fault(number, field, message) for field, message in _faults(data)]:
        return faults
    bound = DEFAULT_TOKENS
    if data["scorer"] == Scorer.LOG_LIKELIHOOD:
        bound = len(data["expected"].encode())
    return Line(number, data["messages"], data["scorer"], data["expected"], data.get("max_tokens", bound))


def _faults(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in sorted(set(data) - FIELDS):
        yield ascii(name)[1:-1][:100], "unknown"
    for name in sorted(FIELDS - {"max_tokens"} - set(data)):
        yield name, "missing"
    if "messages" in data:
        yield from _messages(data["messages"])
    scorer = data.get("scorer")
    if "scorer" in data and (not isinstance(scorer, str) or scorer not in Scorer.values):
        yield "scorer", f"must be one of {', '.join(Scorer.values)}"
    elif {"scorer", "expected"} <= set(data) and (message := _expected(scorer, data["expected"])):
        yield "expected", message
    if "max_tokens" in data and (message := _bound(scorer, data["max_tokens"])):
        yield "max_tokens", message


def _messages(messages: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        yield "messages", f"must be a list of 1 to {MAX_MESSAGES} messages"
        return
    for place, message in enumerate(messages):
        field = f"messages[{place}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            yield field, "must have a role and a content, and nothing else"
        elif message["role"] not in ROLES:
            yield f"{field}.role", f"must be one of {', '.join(ROLES)}"
        elif not isinstance(message["content"], str) or not _storable(message["content"]):
            yield f"{field}.content", "must be a text without NUL or lone surrogates"


def _expected(scorer: Any, expected: Any) -> str | None:
    if scorer == Scorer.JSON_SCHEMA:
        return None if isinstance(expected, dict | bool) and _storable(expected) else "must be a JSON schema"
    if not isinstance(expected, str) or not expected or len(expected) > MAX_EXPECTED or not _storable(expected):
        return f"must be a text of 1 to {MAX_EXPECTED:,} characters without NUL or lone surrogates"
    if scorer == Scorer.LOG_LIKELIHOOD and len(expected.encode()) > MAX_TOKENS:
        return f"may have {MAX_TOKENS:,} bytes at most, for its likelihood"
    return None


def _bound(scorer: Any, tokens: Any) -> str | None:
    if scorer == Scorer.LOG_LIKELIHOOD:
        return "nothing is generated for log-likelihood"
    whole = isinstance(tokens, int) and not isinstance(tokens, bool)
    return None if whole and 0 < tokens <= MAX_TOKENS else f"must be a whole number from 1 to {MAX_TOKENS:,}"


def _storable(value: Any) -> bool:
    """PostgreSQL keeps neither NUL nor what is no Unicode; and nobody needs a schema that is nested without end."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return False
    return "\x00" not in text and r"\u0000" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _faults_together(lines: Sequence[Line]) -> Iterator[Fault]:
    measures = {line.measure for line in lines}
    if not lines:
        yield Fault(0, "", "it has no lines")
    elif len(measures) > 1:
        other = next(line for line in lines if line.measure != lines[0].measure)
        yield Fault(other.number, "scorer", "log-likelihood goes with no other scorer: they have no common mean")
    elif measures == {Measure.LOG_LIKELIHOOD} and len(lines) == 1:
        yield Fault(0, "", "log-likelihood needs two lines at least, or there is no interval")
    if sum(line.max_tokens for line in lines) > MAX_ALL_TOKENS:
        yield Fault(0, "max_tokens", f"all answers together may have {MAX_ALL_TOKENS:,} tokens at most")
