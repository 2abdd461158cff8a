"""What passes, and that a tenant's pattern or schema can neither hang, grow, read nor fetch."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from evaluations import judge as judging
from evaluations.judge import TOO_LONG, Judge

SCHEMA = {
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/count"}},
    "required": ["n"],
    "$defs": {"count": {"type": "integer", "minimum": 1}},
}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine, what does answer is heard."""
    monkeypatch.setattr(judging, "PATIENCE", 60)
    monkeypatch.setattr(judging, "STARTING", 60)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


@pytest.mark.parametrize(
    ("scorer", "expected", "right", "wrong"),
    [
        ("exact", "Paris", " Paris\n", "paris"),
        ("contains", "Paris", "It is Paris.", "It is paris."),
        ("regex", r"(?i)\bparis\b", "It is PARIS.", "parish"),
        ("regex", r"^(\w+) \1$", "so so", "so la"),
        ("json-schema", SCHEMA, '{"n": 3}', '{"n": 0}'),
        ("json-schema", SCHEMA, ' {"n": 3, "m": null}\n', '{"n": 3} and more'),
        ("json-schema", True, "[]", "not JSON"),
    ],
)
def test_right_answers_pass_and_wrong_ones_do_not(
    judge: Judge, scorer: str, expected: Any, right: str, wrong: str
) -> None:
    assert judge.problem(scorer, expected) is None
    assert judge.passes(scorer, expected, right) == (True, "")
    assert judge.passes(scorer, expected, wrong) == (False, "")


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        ("regex", "("),
        ("regex", "a{1,99999999999}"),
        ("json-schema", {"type": "strnig"}),
        ("json-schema", {"properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}),
        ("json-schema", {"$ref": "file:///etc/passwd"}),
        ("json-schema", {"items": [{"$dynamicRef": "other.json"}]}),
        ("json-schema", {"pattern": "("}),
    ],
)
def test_what_cannot_score_is_told_at_the_upload(judge: Judge, scorer: str, expected: Any) -> None:
    assert judge.problem(scorer, expected) or expected == {"pattern": "("}  # a pattern in a schema shows when it is met
    assert judge.passes(scorer, expected, '"a"')[0] is False


def test_a_hanging_pattern_is_killed_and_the_next_answer_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    with Judge(300) as judge:
        assert judge.passes("regex", "b", "abc") == (True, "")
        monkeypatch.setattr(judging, "PATIENCE", 0.3)
        assert judge.passes("regex", r"(a+)+$", "a" * 60 + "b") == (False, TOO_LONG)
        assert judge.passes("json-schema", {"pattern": "(a+)+$"}, f'"{"a" * 60}b"') == (False, TOO_LONG)
        monkeypatch.setattr(judging, "PATIENCE", 60)
        assert judge.passes("regex", "b", "abc") == (True, "")
        assert not judge.exhausted


def test_many_hanging_patterns_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "PATIENCE", 0.2)
    with Judge(0.5) as judge:
        verdicts = [judge.passes("regex", r"(a+)+$", "a" * 60 + "b") for _ in range(200)]
        assert set(verdicts) == {(False, TOO_LONG)}
        assert judge.exhausted


def test_memory_is_bounded(judge: Judge) -> None:
    assert judge.passes("regex", "x", "y" * 2**20 + "x") == (True, "")
    grown = "[" + "{}," * 2**23 + "0]"  # half a gigabyte once it is read
    assert judge.passes("json-schema", True, grown) in ((False, "MemoryError"), (False, TOO_LONG))
    assert judge.passes("regex", "b", "abc") == (True, "")


def test_schemas_that_multiply_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    defs: dict[str, Any] = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)}
    bomb = {"$ref": "#/$defs/0", "$defs": defs | {"40": {}}}
    with Judge() as judge:
        assert judge.passes("json-schema", True, "1") == (True, "")
        monkeypatch.setattr(judging, "PATIENCE", 0.3)
        assert judge.passes("json-schema", bomb, "1") == (False, TOO_LONG)


def test_no_schema_is_ever_fetched(judge: Judge) -> None:
    asked: list[str] = []

    class Trap(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Trap) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        for schema in ({"$ref": f"{host}/a"}, {"$id": host, "$ref": "b.json"}, {"$schema": f"{host}/c", "$ref": "#/x"}):
            assert judge.passes("json-schema", schema, "1")[0] is False
        server.shutdown()
    assert asked == []
