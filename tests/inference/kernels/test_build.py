"""The library is compiled once for its very sources, and its lack is survived."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference.kernels import build
from inference.kernels.library import library


def test_the_file_name_changes_with_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that only writes its output: what it makes of the sources, every other test sees."""
    before = build.ensure()
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    for source in build.SOURCES.glob("*.[hc]*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "liblorayard-0000000000000000.so").touch()
    (tmp_path / "dispatch.cpp").open("a").write("// changed\n")
    after = build.ensure()
    assert after.parent == tmp_path
    assert after.name != before.name
    assert list(tmp_path.glob("*.so")) == [after], "a stale library stays behind"


def test_without_a_compiler_the_reference_serves_after_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    library.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert library() is None
        assert library() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    library.cache_clear()


@pytest.mark.parametrize("isa", list(build.ISAS))
def test_the_environment_chooses_the_isa(isa: str) -> None:
    native = library()
    assert native is not None
    before = native.isa
    try:
        native.select(isa)
    except ValueError:
        pytest.skip(f"this processor has no {isa}")
    finally:
        native.select(before)
    script = "from inference.kernels.library import library; print(library().isa)"
    env = {**os.environ, "LORAYARD_CPU_ISA": isa, "PYTHONPATH": str(build.SOURCES.parents[2])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == isa


def test_an_isa_that_the_processor_lacks_is_refused_by_name() -> None:
    native = library()
    assert native is not None
    with pytest.raises(ValueError, match="sparc"):
        native.select("sparc")


def test_the_kernels_share_torchs_openmp_threads() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    assert library() is not None
    assert len({line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}) <= 1
