"""What a layer does between its products, and siblings in one launch, as a GPU computes them; where there is none.

One process for all of it: the interpreter is chosen before triton is imported, and importing it costs the most.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = ("pointwise", "joined")


@pytest.mark.timeout(300)
def test_their_numerics_under_the_interpreter() -> None:
    here = Path(__file__).parent / "on_device"
    plugins = ("-p", "no:randomly", "-p", "no:django", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--noconftest", *plugins, *(str(here / f"{f}.py") for f in FILES)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
