"""What a process of ours may use."""

import os
import subprocess
import sys

import pytest

from config.processes import FILES
from tests.processes import ROOT, environment

SHOW = """
from resource import RLIMIT_NOFILE, getrlimit
from config.processes import raise_file_limit
raise_file_limit()
print(*getrlimit(RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "now"), [(200, 300, (300, 300)), (200, 200, (200, 200)), (200, None, None)], ids=str
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    soft: int, hard: int | None, now: tuple[int, int] | None
) -> None:
    limits = f"ulimit -Sn {soft}" + (f" && ulimit -Hn {hard}" if hard else "")
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    shown = subprocess.run(
        ["sh", "-c", f'{limits} && exec "$@"', "sh", sys.executable, "-c", SHOW],
        env=environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    seen = tuple(int(number) for number in shown.stdout.split())
    assert seen == now if now else 200 < seen[0] <= FILES
