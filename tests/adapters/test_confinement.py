"""Uploads are looked at where they can hurt nobody: what takes too much is refused, and the next one is looked at."""

import os
import signal
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from adapters.confinement import Cell, CellLost
from adapters.errors import Finding, Rejected
from adapters.files import CONFIG, WEIGHTS
from adapters.limits import MIB, Limits
from adapters.manifest import Manifest
from adapters.validation import validate
from tests.adapters.builders import BASE, adapter, write, zipped

GOOD = adapter()
SPEC = BASE.to_json()


@pytest.fixture
def cell() -> Cell:
    return Cell()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def files(folder: Path, **changes: bytes) -> list[Path]:
    return sorted(write(folder / "upload", {**GOOD, **changes}).iterdir())


def looks(cell: Cell, paths: list[Path], work: Path, limits: Limits | None = None) -> dict[str, Any]:
    for left in work.iterdir():
        left.unlink()
    return dict(cell.examine(paths, work, SPEC, limits or Limits()).summary)


def test_it_says_what_looking_here_says(cell: Cell, tmp_path: Path, work: Path) -> None:
    paths = files(tmp_path)
    assert looks(cell, paths, work) == validate(paths[0].parent, BASE).to_json()
    assert Manifest.of(work).digest == Manifest.of(paths[0].parent).digest
    packed = zipped(tmp_path / "a.zip", GOOD.items())
    assert looks(cell, [packed], work)["modules"] == 4
    assert {path.name for path in work.iterdir()} == {CONFIG, WEIGHTS}


def test_of_a_trainer_s_folder_the_adapter_is_taken_and_the_rest_named(cell: Cell, tmp_path: Path, work: Path) -> None:
    beside = {"optimizer.pt": b"\x80\x04.", "tokenizer.json": b"{}", "README.md": b"card"}
    one_by_one = cell.examine(files(tmp_path, **beside), work, SPEC)
    packed = zipped(tmp_path / "a.zip", [(f"out/{name}", content) for name, content in {**GOOD, **beside}.items()])
    for left in work.iterdir():
        left.unlink()
    for examined, prefix in ((one_by_one, ""), (cell.examine([packed], work, SPEC), "out/")):
        (note,) = examined.notes
        assert (note.rule, note.severity, note.count) == ("left-out", "note", 2)
        assert f"{prefix}optimizer.pt, {prefix}tokenizer.json." in note.message
        assert examined.summary["modules"] == 4
    assert {path.name for path in work.iterdir()} == {CONFIG, WEIGHTS}


def test_every_finding_comes_through_whole(cell: Cell, tmp_path: Path, work: Path) -> None:
    paths = files(tmp_path, **{CONFIG: b"{", WEIGHTS: GOOD[WEIGHTS][:-4]})
    with pytest.raises(Rejected) as here:
        validate(paths[0].parent, BASE)
    with pytest.raises(Rejected) as there:
        looks(cell, paths, work)
    assert there.value.findings == here.value.findings
    assert {finding.severity for finding in there.value.findings} == {"error"}
    assert set(asdict(there.value.findings[0])) == {field.name for field in fields(Finding)}


@pytest.mark.parametrize(
    ("bounds", "rule", "expected"),
    [
        ({"memory": MIB // 2}, "memory-limit", "at most 0 MiB"),
        ({"seconds": 0.0}, "time-limit", "at most 0 seconds"),
    ],
)
def test_what_takes_too_much_is_refused_and_the_next_is_looked_at(
    bounds: dict[str, Any], rule: str, expected: str, tmp_path: Path, work: Path
) -> None:
    cell, paths = Cell(**bounds), files(tmp_path)
    for _ in range(2):
        with pytest.raises(Rejected) as refusal:
            looks(cell, paths, work)
        assert (refusal.value.rules, refusal.value.findings[0].expected) == ((rule,), expected)
    cell.memory, cell.seconds = 512 * MIB, 60.0
    assert looks(cell, paths, work)["modules"] == 4


def test_a_bomb_ends_before_it_fills_the_disk(cell: Cell, tmp_path: Path, work: Path) -> None:
    bomb = zipped(tmp_path / "a.zip", [(CONFIG, GOOD[CONFIG]), (WEIGHTS, bytes(2**24))])
    with pytest.raises(Rejected) as refusal:
        looks(cell, [bomb], work, Limits(total=2**20, ratio=10_000))
    assert refusal.value.rules == ("too-large",)
    assert list(work.iterdir()) == []


def test_what_is_not_the_files_fault_is_no_refusal(cell: Cell, tmp_path: Path, work: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        looks(cell, [tmp_path / "gone" / name for name in GOOD], work)
    with pytest.raises(RuntimeError, match="Traceback"):
        cell.examine(files(tmp_path), work, {"nonsense": 1})
    for answer, error in (({"died": signal.SIGKILL}, CellLost), ({"died": signal.SIGSEGV}, Rejected)):
        with pytest.raises(error):
            cell._read({name: int(number) for name, number in answer.items()})


def test_a_process_that_was_killed_is_started_again(cell: Cell, tmp_path: Path, work: Path) -> None:
    paths = files(tmp_path)
    looks(cell, paths, work)
    first = cell._process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert looks(cell, paths, work)["modules"] == 4


def test_it_holds_none_of_our_secrets(cell: Cell, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    looks(cell, files(tmp_path), work)
    assert cell._process is not None
    assert b"s3cret" not in Path(f"/proc/{cell._process.pid}/environ").read_bytes()
    opened = [os.readlink(path) for path in Path(f"/proc/{cell._process.pid}/fd").iterdir()]
    assert not [path for path in opened if path.startswith("socket:")]
