"""Knows how to score by what a tenant wrote without trusting it: in a child process, which is killed if it takes long.

The child has no environment, so no secret, and only its two pipes.
"""

import json
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from evaluations import scorers
from evaluations.models import Scorer

PATIENCE = 2.0  # seconds for one answer
STARTING = 10.0  # seconds for a child to start
COSTLY = (Scorer.REGEX, Scorer.JSON_SCHEMA)
TOO_LONG = "it takes too long to evaluate"


class Judge:
    """Scores answers, one at a time. `budget`: seconds that all of them may take together."""

    def __init__(self, budget: float = float("inf")) -> None:
        self._left = budget
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    @property
    def exhausted(self) -> bool:
        return self._left <= 0

    def problem(self, scorer: str, expected: Any) -> str | None:
        """Why nothing could be scored by it; None if it is in order."""
        if scorer not in COSTLY:
            return None
        told = self._ask({"scorer": scorer, "expected": expected})
        return TOO_LONG if told is None else told["problem"]

    def passes(self, scorer: str, expected: Any, answer: str) -> tuple[bool, str]:
        """The verdict, and a note where a failure is not plain."""
        if scorer not in COSTLY:
            return scorers.passes(scorer, expected, answer), ""
        told = self._ask({"scorer": scorer, "expected": expected, "answer": answer})
        return (False, TOO_LONG) if told is None else (told["passes"], told.get("note", ""))

    def _ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """The child's answer; None if it did not come in time or the child died of it."""
        if self.exhausted:
            return None
        child = self._child = self._child or _start()
        began = time.monotonic()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
            line = _line_of(child, min(PATIENCE, self._left))
        except BrokenPipeError:
            line = None
        self._left -= time.monotonic() - began
        if line is None:
            self._end()
            return None
        told: dict[str, Any] = json.loads(line)
        return told

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _start() -> subprocess.Popen[bytes]:
    """-I: nothing of the environment or the folder it starts in reaches it."""
    argv = [sys.executable, "-I", str(Path(scorers.__file__).resolve())]
    child = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", env={}
    )
    _line_of(child, STARTING)  # that it is ready; if it is not, the first question finds out
    return child


def _line_of(child: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    assert child.stdout is not None
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([child.stdout], [], [], left)[0]:
            return child.stdout.readline() or None
    return None
