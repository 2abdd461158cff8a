"""The demo's bad version on a whole platform of its own, as a newcomer would see it; `make soak` runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, Up, environment, free_port

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


def test_the_bad_version_is_rolled_back_without_one_failed_request(tmp_path: Path) -> None:
    told = {"LORAYARD_HOME": str(tmp_path / "home"), "LORAYARD_PORT": str(free_port())}
    with Up(told, tmp_path / "log") as up:
        up.ready(300)
        argv = [sys.executable, str(ROOT / "demo" / "rollout.py")]
        shown = subprocess.run(argv, env=environment(**told), capture_output=True, text=True, timeout=500, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "rolled_back (verdict)" in shown.stdout
