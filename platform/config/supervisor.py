"""Keeps child processes running, by honcho's processes and printer. Knows commands; knows nothing of what they do.

Three things are unlike honcho's own manager: a process that stops is started again after a pause instead of stopping
the others; one that hangs, which it is seen to by its command's sign, is killed and starts again; and the end has an
order: what was started last is asked to stop first.
"""

import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path

from honcho.colour import get_colours
from honcho.printer import Message, Printer
from honcho.process import Popen, Process

from config.processes import Command, kill_group
from config.signs import Sign

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between a stop and the next start, doubled every time
SETTLED = 30.0  # seconds of life after which a stop counts as the first one again
STARTS_BEFORE_READY = 2
TICK = 0.1
LOOK_EVERY = 2.0  # seconds between looks for a sign of life
LOOKS = 3  # in vain that it takes at least: a supervisor that was itself stopped has seen none
LOG_BYTES = 8 * 2**20


class ChildFailed(Exception):
    """A process keeps stopping although nothing can be ready without it. Its text is one line."""


@dataclass
class Child:
    """One command and its process, if it runs now."""

    command: Command
    log: logging.Handler
    process: Process
    running: bool = False
    started_at: float = 0.0
    due_at: float = 0.0
    pause: float = FIRST_PAUSE
    starts: int = 0
    last_line: str = ""
    returncode: int | None = None
    once: bool = False
    watch: "Watch | None" = None

    @property
    def popen(self) -> subprocess.Popen[bytes] | None:
        popen: subprocess.Popen[bytes] | None = self.process._child
        return popen

    def back_off(self, now: float) -> None:
        """Sets when to start again. The next pause is twice as long, unless the process settles in between."""
        if now - self.started_at > SETTLED:
            self.pause = FIRST_PAUSE
        self.due_at, self.pause = now + self.pause, min(2 * self.pause, LONGEST_PAUSE)


class Watch:
    """Looks for one process' sign of life, in a thread of its own, from its start to its end.

    What has never shown it is starting, for as long as that takes: a model may be large.
    """

    def __init__(self, sign: Sign, pid: int) -> None:
        self._sign = sign
        self._pid = pid
        self._over = threading.Event()
        self._missed: list[float] = []  # the moments of looks in vain since it was seen last
        self._began = False
        threading.Thread(target=self._look, name="signs-of-life", daemon=True).start()

    @property
    def hangs(self) -> bool:
        missed = self._missed
        return len(missed) >= LOOKS and missed[-1] - missed[0] > self._sign.bound

    def end(self) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            began, seen = time.monotonic(), self._sign.seen(self._pid)
            if seen:
                self._began, self._missed = True, []
            elif seen is False and self._began:
                self._missed = [*(self._missed or [began]), time.monotonic()]


class Supervisor:
    """The children of one `up`. Not thread-safe: one thread calls it, and each child has a reader thread of its own.

    Until `loud` is set, what children print goes only to `<logs>/<name>.log`; then to the printer as well.
    """

    def __init__(self, logs: Path, printer: Printer | None = None) -> None:
        self.loud = False
        self._stopping = False
        self._logs = logs
        self._printer = printer or Printer(width=8)
        self._colours = get_colours()
        self._events: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._children: dict[str, Child] = {}

    def say(self, text: str) -> None:
        """A line of our own, in the form of the children's."""
        self._printer.write(Message("line", text, datetime.now(), "up", None))

    def start(self, command: Command) -> None:
        """Starts it now, and again whenever it stops."""
        self._launch(self._add(command))

    def finish(self, command: Command, seconds: float) -> None:
        """Runs it once, to its end, and passes on what it prints. Raises ChildFailed if it fails or takes too long."""
        child = self._add(command)
        child.once = True
        self._launch(child)
        self.wait(lambda: not child.running, seconds, lambda: command.name)
        if child.returncode:
            raise ChildFailed(f"{command.name}: {child.last_line}")

    def wait(self, condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
        """Keeps all running until the condition holds. Raises ChildFailed if it takes too long or cannot."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.turn()
            self._despair()
            if time.monotonic() > deadline:
                raise ChildFailed(f"{what()} was not ready within {seconds:.0f} s; see {self._logs}")

    def turn(self) -> None:
        """Waits a tick for what children say, then starts those that are due."""
        self._drain(TICK)
        now = time.monotonic()
        for child in self._children.values():
            popen = child.popen
            if child.running and popen is not None and popen.poll() is not None:
                kill_group(popen.pid)  # its own children would keep the pipe open, and hide that it stopped
            elif child.running and popen is not None and child.watch is not None and child.watch.hangs:
                self._end_hanging(child, popen)
            elif not child.running and not child.once and now >= child.due_at:
                self._launch(child)

    def stop(self, waves: Sequence[Sequence[str]], grace: float) -> None:
        """Asks each wave of names to stop, in turn, and kills what is left of it after `grace` seconds."""
        self._stopping = True
        for child in self._children.values():
            if child.watch is not None:
                child.watch.end()
        for wave in waves:
            children = [self._children[name] for name in wave if name in self._children]
            alive = [(child, child.popen) for child in children if child.popen and child.popen.poll() is None]
            for child, popen in alive:
                popen.send_signal(child.command.stop)
            deadline = time.monotonic() + grace
            while any(popen.poll() is None for _, popen in alive) and time.monotonic() < deadline:
                self._drain(TICK)
            for _, popen in alive:
                kill_group(popen.pid)
                popen.wait()
        self._drain(TICK)

    def _add(self, command: Command) -> Child:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = RotatingFileHandler(self._logs / f"{command.name}.log", maxBytes=LOG_BYTES, backupCount=1)
        process = Process(command.argv, name=command.name, colour=next(self._colours), cwd=command.cwd)
        process.env = command.environment
        process._child_ctor = partial(Popen, shell=False, **command.options)
        child = self._children[command.name] = Child(command, log, process)
        return child

    def _launch(self, child: Child) -> None:
        child.running, child.started_at, child.starts = True, time.monotonic(), child.starts + 1
        child.process._child = None
        reader = threading.Thread(target=self._read, args=(child,), name=child.command.name, daemon=True)
        reader.start()
        while child.popen is None and reader.is_alive():
            time.sleep(0.001)
        if child.command.sign is not None and child.popen is not None:
            child.watch = Watch(child.command.sign, child.popen.pid)

    def _end_hanging(self, child: Child, popen: subprocess.Popen[bytes]) -> None:
        assert child.watch is not None
        child.watch.end()
        child.watch = None
        self.say(f"{child.command.name} shows no sign of life and is killed")
        kill_group(popen.pid)

    def _read(self, child: Child) -> None:
        """The reader thread. It outlives the process, which is what `die_with_parent` needs."""
        try:
            child.process.run(self._events)
        except OSError as error:
            for kind, data in (("line", str(error)), ("stop", {"returncode": 127})):
                child.process._send_message(data, type=kind)

    def _drain(self, seconds: float) -> None:
        """Handles what children said, waiting for the first of it."""
        try:
            self._handle(self._events.get(timeout=seconds))
            while True:
                self._handle(self._events.get_nowait())
        except queue.Empty:
            return

    def _handle(self, message: Message) -> None:
        child = self._children[message.name]
        if message.type == "line":
            text = message.data.decode(errors="replace") if isinstance(message.data, bytes) else message.data
            child.last_line = text.strip() or child.last_line
            child.log.emit(logging.makeLogRecord({"msg": "%s", "args": (text.rstrip(),)}))
            if self.loud or child.once:
                self._printer.write(message)
        elif message.type == "stop":
            child.running, child.returncode = False, message.data["returncode"]
            if child.watch is not None:
                child.watch.end()
                child.watch = None
            child.back_off(time.monotonic())
            if self.loud and not child.once:
                again = "" if self._stopping else f", starts again in {child.due_at - time.monotonic():.1f} s"
                text = f"stopped ({child.returncode}){again}\n"
                self._printer.write(message._replace(type="line", data=text))

    def _despair(self) -> None:
        for child in self._children.values():
            if not child.running and not child.once and child.starts >= STARTS_BEFORE_READY:
                raise ChildFailed(f"{child.command.name} does not start: {child.last_line or child.returncode}")
