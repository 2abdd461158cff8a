"""What must never reach a log."""

import json
import logging
from typing import Any

import pytest
import structlog

from config import logs

KEY = "ly_0123456789ab_" + "f" * 64


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """line(function): what the platform's own formatter makes of what the function logs."""
    formatter = logs.configure(human=False)["formatters"]["line"]

    def written(message: str, *arguments: object, **extra: object) -> dict[str, Any]:
        record = logging.LogRecord("test", logging.INFO, __file__, 1, message, arguments, None)
        chain = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[lambda _l, _m, event: {**event, **extra}, *formatter["foreign_pre_chain"]],
            processors=formatter["processors"],
        )
        text = chain.format(record)
        assert "\n" not in text
        return dict(json.loads(text))

    return written


def test_a_line_is_json(line: Any) -> None:
    assert line("answered", status=200)["status"] == 200


@pytest.mark.parametrize("name", ["authorization", "api_key", "password", "Set-Cookie", "engine_secret", "token"])
def test_a_secret_is_known_by_its_name(line: Any, name: str) -> None:
    assert line("x", **{name: "hunter2"})[name] == logs.REDACTED


@pytest.mark.parametrize("name", ["prompt", "messages", "input", "content", "instructions"])
def test_what_people_write_is_not_logged(line: Any, name: str) -> None:
    assert line("x", body={name: ["my illness"]})["body"] == {name: logs.REDACTED}


@pytest.mark.parametrize(
    "text", [f"bad key {KEY}", f"Authorization: Bearer {KEY}", "bearer abc.def", "postgresql://me:hunter2@db/x"]
)
def test_a_secret_is_known_in_running_text(line: Any, text: str) -> None:
    event = line(text)["event"]
    assert logs.REDACTED in event
    assert not any(secret in event for secret in (KEY, "abc.def", "hunter2"))


def test_counts_of_tokens_are_no_secret(line: Any) -> None:
    assert line("x", prompt_tokens=7)["prompt_tokens"] == 7


def test_an_errors_text_is_cleaned_as_well(line: Any) -> None:
    assert KEY not in json.dumps(line("failed: %s", ValueError(f"no such key {KEY}")))


def test_tasks_that_run_every_second_leave_no_lines_and_failed_ones_do() -> None:
    for name in ("celery.beat", "celery.worker.strategy", "celery.app.trace"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
        assert logging.getLogger(name).isEnabledFor(logging.ERROR)
