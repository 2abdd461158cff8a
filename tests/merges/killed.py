"""Runs merges in processes that kill themselves with SIGKILL at a named point.

Each line of the input says a merge, a point and a home.

A point is a stage and how often it was told of ("merging:3"), a function that was just called ("entered:NAME"), or one
that was just done ("left:NAME").
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import django

django.setup()

from django.conf import settings  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from merges.services import leases, running  # noqa: E402
from registry import quarantine  # noqa: E402

NAMED: dict[str, tuple[Any, str]] = {
    "rename": (Path, "replace"),
    "settle": (leases, "_settle"),
    "finish_checkpoint": (leases, "finish_checkpoint"),
    "finish_version": (leases, "finish_version"),
    "admit": (quarantine, "admit"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    kind, _, rest = point.partition(":")
    if kind not in ("entered", "left"):
        _arm_stage(kind, int(rest))
        return
    owner, name = NAMED[rest]
    original: Callable[..., Any] = getattr(owner, name)

    def armed(*arguments: Any, **named: Any) -> Any:
        if kind == "entered":
            die()
        original(*arguments, **named)
        die()

    setattr(owner, name, armed)


def _arm_stage(stage: str, times: int) -> None:
    kind: Any = running.Shift
    told, original = 0, kind.__call__

    def armed(shift: running.Shift, at: str, count: int) -> None:
        nonlocal told
        told += at == stage
        if told == times:
            die()
        original(shift, at, count)

    kind.__call__ = armed


def child(merge: str, point: str, home: str) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"home": Path(home), "store_url": f"file://{home}/store"})
    arm(point)
    running.run_merge(UUID(merge))
    os._exit(0)


def main(shard: int) -> None:
    vars(running).update(SHARD=shard, TOLD_EVERY=0.0)
    assert issubclass(LlamaForCausalLM, object)  # imported once, for all children
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            child(*line.split())
        _, status = os.waitpid(pid, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
