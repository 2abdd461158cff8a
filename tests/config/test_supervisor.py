"""Processes that stop, stay away, or will not go."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from honcho.printer import Printer

from config import supervisor
from config.processes import Command
from config.signs import Sign, runs
from config.supervisor import ChildFailed, Supervisor

FOREVER = "import time; time.sleep(600)"


def python(name: str, code: str) -> Command:
    return Command(name, (sys.executable, "-c", code))


@pytest.fixture
def said() -> StringIO:
    return StringIO()


@pytest.fixture
def running(tmp_path: Path, said: StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A supervisor whose pauses are short."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.05)
    made = Supervisor(tmp_path, Printer(said))
    yield made
    made.stop((("one", "two", "three"),), 0.5)


def pid(running: Supervisor, name: str) -> int:
    popen = running._children[name].popen
    assert popen is not None
    return popen.pid


def until(running: Supervisor, condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    running.wait(condition, seconds, lambda: "it")


def test_what_is_killed_starts_again_and_the_others_stay(running: Supervisor) -> None:
    running.start(python("one", FOREVER))
    running.start(python("two", FOREVER))
    first, other = pid(running, "one"), pid(running, "two")
    os.kill(first, signal.SIGKILL)
    until(running, lambda: pid(running, "one") != first)
    assert pid(running, "two") == other


def test_pauses_grow_until_it_settles(running: Supervisor) -> None:
    running.start(python("one", FOREVER))
    child = running._children["one"]
    pauses = []
    for _ in range(4):
        child.back_off(child.started_at + 1)
        pauses.append(child.due_at - child.started_at - 1)
    assert pauses == pytest.approx([pauses[0] * 2**i for i in range(4)])
    child.back_off(child.started_at + supervisor.SETTLED + 1)
    assert child.due_at - child.started_at - supervisor.SETTLED - 1 == pytest.approx(supervisor.FIRST_PAUSE)


def test_what_never_starts_is_given_up_with_its_last_words(running: Supervisor) -> None:
    running.start(python("one", "import sys; print('first'); sys.exit('no such model')"))
    with pytest.raises(ChildFailed, match="one does not start: no such model"):
        until(running, lambda: False)


def test_a_program_that_is_not_there_is_given_up_too(running: Supervisor) -> None:
    running.start(Command("one", ("/nowhere/program",)))
    with pytest.raises(ChildFailed, match=r"one does not start: .*nowhere"):
        until(running, lambda: False)


def test_what_takes_too_long_is_named(running: Supervisor) -> None:
    running.start(python("one", FOREVER))
    with pytest.raises(ChildFailed, match="it was not ready within 0 s"):
        until(running, lambda: False, 0.3)


def test_what_runs_once_is_heard_and_does_not_run_again(running: Supervisor, said: StringIO) -> None:
    running.finish(python("one", "print('half way')"), 60)
    assert "half way" in said.getvalue()
    assert running._children["one"].starts == 1
    with pytest.raises(ChildFailed, match="two: it broke"):
        running.finish(python("two", "import sys; sys.exit('it broke')"), 60)


def test_output_is_kept_and_printed_only_when_loud(running: Supervisor, said: StringIO, tmp_path: Path) -> None:
    running.start(python("one", f"print('quiet', flush=True); {FOREVER}"))
    until(running, lambda: "quiet" in (tmp_path / "one.log").read_text())
    assert said.getvalue() == ""
    running.loud = True
    running.start(python("two", f"print('loud', flush=True); {FOREVER}"))
    until(running, lambda: "loud" in said.getvalue())


def test_the_end_has_an_order_and_spares_nobody(running: Supervisor, tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    note = f"open({str(ends)!r}, 'a').write(name), sys.exit()"
    for name in ("one", "two"):
        code = f"import signal, sys; name = {name!r}; signal.signal(15, lambda *_: [{note}]); print('up', flush=True)"
        running.start(python(name, f"{code}; {FOREVER}"))
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    running.start(python("three", stubborn))
    for name in ("one", "two", "three"):
        until(running, lambda name=name: "up" in (tmp_path / f"{name}.log").read_text())
    processes = [psutil.Process(pid(running, name)) for name in ("one", "two", "three")]
    running.stop((("two",), ("one",)), 60)
    assert ends.read_text() == "twoone"
    running.stop((("three",),), 0.5)
    assert not any(process.is_running() for process in processes)


def test_what_a_stopped_process_started_goes_with_it(running: Supervisor, tmp_path: Path) -> None:
    child = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {FOREVER!r}])"
    running.start(python("one", f"{child}; print(child.pid, flush=True); {FOREVER}"))
    until(running, lambda: (tmp_path / "one.log").read_text().strip())
    grandchild = psutil.Process(int((tmp_path / "one.log").read_text().split()[0]))
    os.kill(pid(running, "one"), signal.SIGKILL)
    until(running, lambda: running._children["one"].starts == 2)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_what_shows_no_sign_of_life_any_more_is_killed_and_starts_again(
    running: Supervisor, said: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOOK_EVERY", 0.05)
    for name in ("one", "two"):
        running.start(replace(python(name, FOREVER), sign=Sign(runs, 0.5)))
    first, other = pid(running, "one"), pid(running, "two")
    until(running, lambda: has_shown(running, "one"))
    os.kill(first, signal.SIGSTOP)
    until(running, lambda: running._children["one"].starts == 2)
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    assert pid(running, "two") == other
    assert "one shows no sign of life" in said.getvalue()


def has_shown(running: Supervisor, name: str) -> bool:
    watch = running._children[name].watch
    return watch is not None and watch._began


def test_what_is_still_starting_is_given_its_time(running: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_EVERY", 0.01)
    looks: list[int] = []

    def never(number: int) -> bool:
        looks.append(number)
        return False

    running.start(replace(python("one", FOREVER), sign=Sign(never, 0.0)))
    until(running, lambda: len(looks) > 10)
    assert running._children["one"].starts == 1


def test_a_single_look_in_vain_ends_nobody(running: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_EVERY", 0.01)
    looks: list[int] = []

    def now_and_then(number: int) -> bool:
        looks.append(number)
        return len(looks) % 3 != 2

    running.start(replace(python("one", FOREVER), sign=Sign(now_and_then, 0.0)))
    until(running, lambda: len(looks) > 30)
    assert running._children["one"].starts == 1


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_nobody_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = ['.', 'platform']
from pathlib import Path
from config.processes import Command
from config.signs import Sign, runs
from config.supervisor import Supervisor
running = Supervisor(Path({str(tmp_path)!r}))
running.start(Command('one', (sys.executable, '-c', {FOREVER!r})))
print(running._children['one'].popen.pid, flush=True)
while True: running.turn()
"""
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, _ = psutil.wait_procs([child], 60)
    assert gone or child.status() == psutil.STATUS_ZOMBIE
