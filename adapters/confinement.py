"""Has uploads looked at by a process that may die of them (adapters.cell), and says what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import adapters
from adapters.errors import Finding, Rejected
from adapters.limits import DEFAULT, MIB, Limits

MEMORY: Final = 512 * MIB
SECONDS: Final = 120.0
_KILLED: Final = 9  # by nobody of ours: the machine ran out of memory, or somebody meddled


class CellLost(OSError):
    """The process that looks at uploads died without an answer. Asking again starts another."""


@dataclass(frozen=True)
class Examined:
    """An adapter that is served exactly: its validation's summary as JSON, and what else the upload is to be told."""

    summary: Mapping[str, Any]
    notes: tuple[Finding, ...] = ()


class Cell:
    """One process for any number of jobs, one after the other. It is started when first needed, and again if lost."""

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self.memory = memory
        self.seconds = seconds
        self._lock = threading.Lock()
        self._owner = 0
        self._process: subprocess.Popen[bytes] | None = None

    def examine(self, files: Sequence[Path], work: Path, base: Mapping[str, Any], limits: Limits = DEFAULT) -> Examined:
        """Lay the adapter's two files, from among `files` or the one archive, out in the empty `work` and judge them.

        Raises Rejected, also for what takes more memory or time than it may,
        and OSError when the files can't be read or the process is lost, which says nothing about them.
        """
        bounds = {"memory": self.memory, "seconds": self.seconds}
        job = {"files": [str(file) for file in files], "work": str(work), "base": dict(base), "limits": asdict(limits)}
        return self._read(self._ask({**job, **bounds}))

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
                answer: dict[str, Any] = json.loads(process.stdout.readline())
            except (BrokenPipeError, ValueError) as error:
                process.kill()
                raise CellLost("the process that looks at uploads is lost") from error
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        """The process; never one of the parent this process was forked from."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._owner, self._process = os.getpid(), _start()
        return self._process

    def _read(self, answer: dict[str, Any]) -> Examined:
        match answer:
            case {"summary": summary, "findings": findings}:
                return Examined(summary, tuple(Finding(**finding) for finding in findings))
            case {"findings": findings}:
                raise Rejected(Finding(**finding) for finding in findings)
            case {"over": "time"}:
                raise _over("time-limit", "time", f"{self.seconds:g} seconds")
            case {"over": "memory"}:
                raise _over("memory-limit", "memory", f"{self.memory // MIB} MiB")
            case {"died": int(number)} if number != _KILLED:
                message = "Looking at the files broke the process that did; save the adapter again and upload it."
                raise Rejected.because("validation-crashed", message, found=f"signal {number}")
            case {"lost": why, "errno": int(number)}:
                raise OSError(number, why)
            case {"lost": why}:
                raise OSError(why)
            case {"failed": trace}:
                raise RuntimeError(trace)
        raise CellLost(f"the process that looks at uploads was killed: {answer}")


def _start() -> subprocess.Popen[bytes]:
    """In an environment of its own, with nothing in it that is secret."""
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": str(Path(adapters.__file__).resolve().parents[1]),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "adapters.cell"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
    )


def _over(rule: str, what: str, most: str) -> Rejected:
    message = f"Looking at the files took more {what} than is allowed; save the adapter again, or make it smaller."
    return Rejected.because(rule, message, expected=f"at most {most}", found=f"more {what}")
