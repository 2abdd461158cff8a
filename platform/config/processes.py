"""What a child process is: its command, who it runs as and how it is told to stop. Knows no particular process."""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.signs import Sign

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
FILES = 65_536


@dataclass(frozen=True)
class Command:
    """A program and how it is run. `user` is a uid, None for our own.

    `stop` asks the process for a clean end; `orphaned` is what it gets when its parent dies without a word. `sign`: how
    it is seen to live; one that shows it no more hangs.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    user: int | None = None
    stop: signal.Signals = signal.SIGTERM
    orphaned: signal.Signals = signal.SIGKILL
    sign: Sign | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.env}

    @property
    def options(self) -> dict[str, Any]:
        """What Popen needs besides: a session of its own, so that its whole group can be killed, and its user."""
        options: dict[str, Any] = {"start_new_session": True, "preexec_fn": die_with_parent(self.orphaned)}
        if self.user is not None:
            options |= {"user": self.user, "group": self.user, "extra_groups": []}
        return options

    def popen(self, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv, env=self.environment, cwd=self.cwd, **{**self.options, **options})


def raise_file_limit() -> None:
    """Lets this process, and those that it starts, open as many files as the system allows, FILES at most.

    The usual soft limit of 1024 is meant for programs that use select(); none of ours does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def die_with_parent(sign: signal.Signals) -> Callable[[], None] | None:
    """A hook for the child to run before exec, so that it gets `sign` when the thread that made it ends. Linux only."""
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


def kill_group(pid: int) -> None:
    """Kills what a process that leads its group has left behind, and itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def end(process: subprocess.Popen[bytes], stop: signal.Signals, grace: float) -> None:
    """Asks a process to stop, and kills what is left of its group after `grace` seconds."""
    if process.poll() is None:
        process.send_signal(stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    kill_group(process.pid)
    process.wait()
