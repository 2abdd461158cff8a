"""A set's file is taken whole or refused with every faulty line named."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluations import lines
from evaluations.errors import SetMalformed
from evaluations.lines import digest, read
from evaluations.models import Scorer

GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "scorer": "exact", "expected": "hello"}


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def faults(raw: bytes) -> list[tuple[int, str]]:
    with pytest.raises(SetMalformed) as refused:
        read(raw)
    told: list[dict[str, Any]] = refused.value.body["error"]["faults"]
    assert str(refused.value).count(";") == len(told) - 1
    return [(fault["line"], fault["field"]) for fault in told]


def test_lines_are_read_and_counted_as_an_editor_does() -> None:
    found = read(b"\n" + jsonl(GOOD, GOOD | {"max_tokens": 7}) + b"\r\n\n")
    assert [(line.number, line.max_tokens) for line in found] == [(2, lines.DEFAULT_TOKENS), (3, 7)]


def test_likelihoods_are_bounded_by_the_bytes_of_the_answer() -> None:
    (first, _) = read(jsonl(*[GOOD | {"scorer": "log-likelihood", "expected": "né"}] * 2))
    assert (first.max_tokens, first.measure) == (3, "log-likelihood")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"extra": 1}, "extra"),
        ({"scorer": "fuzzy"}, "scorer"),
        ({"scorer": ["exact"]}, "scorer"),
        ({"expected": ""}, "expected"),
        ({"expected": 4}, "expected"),
        ({"expected": "a\x00"}, "expected"),
        ({"expected": "\ud800"}, "expected"),
        ({"expected": "x" * (lines.MAX_EXPECTED + 1)}, "expected"),
        ({"scorer": "json-schema", "expected": "{}"}, "expected"),
        ({"scorer": "json-schema", "expected": {"const": "\x00"}}, "expected"),
        ({"scorer": "log-likelihood", "max_tokens": 5}, "max_tokens"),
        ({"scorer": "log-likelihood", "expected": "x" * (lines.MAX_TOKENS + 1)}, "expected"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": lines.MAX_TOKENS + 1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0]"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
        ({"messages": [GOOD["messages"][0], {"role": "user", "content": ["x"]}]}, "messages[1].content"),
    ],
)
def test_a_faulty_line_is_named_with_its_field(change: dict[str, Any], field: str) -> None:
    assert faults(jsonl(GOOD, GOOD | change)) == [(2, field)]


NO_OBJECTS = [
    b"{",
    b"[]",
    b"\xff",
    b'{"scorer":1,"scorer":1}',
    b'{"expected": NaN}',
    b"[" * 5000,
    b"x" * (lines.MAX_LINE + 1),
]


@pytest.mark.parametrize("row", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_what_is_no_json_object_is_refused(row: bytes) -> None:
    assert faults(jsonl(GOOD) + b"\n" + row + b"\n" + jsonl(GOOD)) == [(2, "")]


WORDS = [*lines.ROLES, *Scorer.values]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*lines.ROLES, "exact"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "role", "content"]), inner),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={name: JSON for name in (*GOOD, "max_tokens")}), st.binary(max_size=20))
@settings(max_examples=150)
def test_nothing_else_ever_comes_of_a_strange_line(row: dict[str, Any], rest: bytes) -> None:
    for change in (row, GOOD | row):
        with contextlib.suppress(SetMalformed):
            digest(read(jsonl(GOOD, change) + b"\n" + rest))


@pytest.mark.parametrize("depth", [150, 400, 900, 5000])
def test_schemas_may_be_nested_but_not_without_end(depth: int) -> None:
    nested = b'{"not":' * depth + b"true" + b"}" * depth
    with contextlib.suppress(SetMalformed):
        read(jsonl(GOOD | {"scorer": "json-schema", "expected": "S"}).replace(b'"S"', nested))


def test_all_faulty_lines_are_told_and_a_flood_of_them_is_cut() -> None:
    assert faults(b"{}\n" + jsonl(GOOD) + b"\n1") == [(1, "expected"), (1, "messages"), (1, "scorer"), (3, "")]
    with pytest.raises(SetMalformed, match=r"and 30 more\.$"):
        read(b"1\n" * 50)


def test_a_set_has_one_measure_and_enough_for_an_interval() -> None:
    likely = GOOD | {"scorer": "log-likelihood"}
    assert faults(b"\n") == [(0, "")]
    assert faults(jsonl(GOOD, GOOD, likely)) == [(3, "scorer")]
    assert faults(jsonl(likely)) == [(0, "")]


def test_size_is_bounded_in_bytes_lines_and_tokens() -> None:
    assert faults(b"\n" * (lines.MAX_BYTES + 1)) == [(0, "")]
    assert faults(b"1\n" * (lines.MAX_LINES + 1)) == [(0, "")]
    assert faults(jsonl(*[GOOD | {"max_tokens": lines.MAX_TOKENS}] * 500)) == [(0, "max_tokens")]


def test_the_digest_is_of_what_is_said_and_not_of_how() -> None:
    spaced = json.dumps(dict(reversed(GOOD.items())), indent=None, separators=(" , ", " : ")).encode()
    assert digest(read(jsonl(GOOD))) == digest(read(b"\n" + spaced + b"\r\n"))
    assert digest(read(jsonl(GOOD))) != digest(read(jsonl(GOOD | {"max_tokens": 9})))
