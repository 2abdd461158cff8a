"""Looks at uploads in a process of its own, each in a fork with little memory and time; never for whom.

`python -m adapters.cell` reads one job a line from its input and writes one answer a line, both in JSON; it ends with
its input. It holds no secrets, no sockets and no database: whatever a file does to it, it does to nothing else.

    {"summary": {…}, "findings": [{…}]}
                         an adapter that is served exactly, and what else is to be said of the upload; the adapter's
                         two files lie in the job's folder
    {"findings": [{…}]}  refused
    {"over": "memory"}   refused: it took more than allowed; or "time"
    {"died": 11}         the signal that ended it
    {"lost": "…"}        the files can't be read, which is not their fault
    {"failed": "…"}      a fault of ours, with its traceback
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from adapters.archive import unpack
from adapters.base import BaseSpec
from adapters.errors import Rejected
from adapters.files import EXPECTED
from adapters.limits import MIB, Limits
from adapters.selection import choose, left_out
from adapters.validation import validate

ARCHIVES: Final = (".zip", ".tar.gz", ".tgz")
_ANSWER_BYTES: Final = 8 * MIB
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(_confined(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


def examine(files: list[Path], work: Path, base: BaseSpec, limits: Limits) -> dict[str, Any]:
    """Lay the adapter's files, from among `files` or the one archive, out in the empty `work` and judge them there."""
    try:
        notes = left_out(_lay_out(files, work, limits))
        return {"summary": validate(work, base, limits).to_json(), "findings": [asdict(note) for note in notes]}
    except Rejected as refusal:
        return {"findings": [asdict(finding) for finding in refusal.findings]}


def _lay_out(files: list[Path], work: Path, limits: Limits) -> list[str]:
    """Returns the names of what is not the adapter's. Raises Rejected."""
    if len(files) == 1 and files[0].name.lower().endswith(ARCHIVES):
        return list(unpack(files[0], work, limits))
    choose([(file.name,) for file in files])
    for file in files:
        if file.name in EXPECTED:
            (work / file.name).hardlink_to(file)
    return [file.name for file in files if file.name not in EXPECTED]


def _confined(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a fork that does the job, or why there is none."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(job, writer)
    os.close(writer)
    raw, in_time = _read(reader, time.monotonic() + job["seconds"])
    os.close(reader)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not in_time or status == -signal.SIGXCPU:
        return {"over": "time"}
    if status != 0:
        return {"died": -status} if status < 0 else {"failed": "the fork ended without an answer"}
    answer: dict[str, Any] = json.loads(raw)
    return answer


def _work(job: Mapping[str, Any], writer: int) -> None:
    """Never returns."""
    try:
        _confine(job["memory"], job["seconds"], job["limits"]["total"])
        files, work = [Path(file) for file in job["files"]], Path(job["work"])
        answer = examine(files, work, BaseSpec.from_json(job["base"]), Limits(**job["limits"]))
    except MemoryError:
        answer = {"over": "memory"}
    except OSError as error:
        answer = {"lost": str(error), "errno": error.errno}
    except BaseException:
        answer = {"failed": traceback.format_exc(limit=-20)}
    try:
        with os.fdopen(writer, "wb") as target:
            target.write(json.dumps(answer).encode())
    except BaseException:
        os._exit(1)
    os._exit(0)


def _confine(memory: int, seconds: float, largest: int) -> None:
    """`memory` comes on top of what the interpreter holds already."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    for which, most in (
        (resource.RLIMIT_AS, held + memory),
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_FSIZE, largest),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (most, most))


def _read(reader: int, deadline: float) -> tuple[bytes, bool]:
    """What the fork writes until it ends, and whether it did so in time."""
    raw = b""
    while len(raw) <= _ANSWER_BYTES:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return raw, False
        chunk = os.read(reader, MIB)
        if not chunk:
            return raw, True
        raw += chunk
    return raw, False


if __name__ == "__main__":
    main()
