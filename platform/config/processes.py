"""What a child process is: its command, who it runs as and how it is told to stop. Knows no particular process."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class Command:
    """`user` is a uid to run as, None for our own. `stop` is the signal that asks for a clean end."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    user: int | None = None
    stop: signal.Signals = signal.SIGTERM

    def options(self) -> dict[str, Any]:
        """What Popen needs: a session of its own, so that the whole group can be signalled, and no life after its parent."""
        identity: dict[str, Any] = (
            {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        )
        return {
            "env": {**os.environ, **self.env},
            "cwd": self.cwd,
            "start_new_session": True,
            "preexec_fn": die_with_parent(self.stop),
            **identity,
        }

    def popen(self, **kwargs: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv, **{**self.options(), **kwargs})


def die_with_parent(sign: signal.Signals) -> Callable[[], None] | None:
    """A hook for the child to run before exec, so that it gets `sign` when its parent dies. None where Linux isn't."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except AttributeError:
        return None
    parent = os.getpid()

    def hook() -> None:
        prctl(PR_SET_PDEATHSIG, int(sign), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), sign)

    return hook


def end(process: subprocess.Popen[bytes], stop: signal.Signals, grace: float) -> None:
    """Asks a process' group to stop, and kills what is left of it after `grace` seconds."""
    if process.poll() is None:
        process.send_signal(stop)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
