"""One machine from nothing to ready, and back: the steps of `manage.py up`. Knows processes; knows no HTTP but /readyz.

Every failure is a StartFailed whose text is one line, and leaves nothing running.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from django.core.management import call_command
from django.db import connections
from django.db.utils import DatabaseError

from config import seed, welcome
from config.env import Env
from config.processes import raise_file_limit
from config.services import ServiceError
from config.stack import STOP_ORDER, Stack
from config.supervisor import ChildFailed, Supervisor

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SERVICE_PATIENCE, SEED_PATIENCE, LOCAL_PATIENCE, DOWNLOAD_PATIENCE = 60.0, 300.0, 300.0, 3600.0  # seconds
SAY_EVERY = 5.0
GRACE = 15.0


class StartFailed(Exception):
    """The platform cannot start. Its text is one line."""


class Stopped(BaseException):
    """Somebody asked us to stop. No failure, so no Exception."""


def run(env: Env) -> None:
    """Starts everything, says so, and keeps it running until SIGINT or SIGTERM. Raises StartFailed."""
    try:
        _run(env)
    except OSError as error:
        raise StartFailed(f"LORAYARD_HOME: cannot use {error.filename or env.home}: {error.strerror}") from None


def _run(env: Env) -> None:
    raise_file_limit()
    supervisor = Supervisor(env.home / "logs")
    with _only_one(env), _stoppable():
        try:
            check_port(env)
            check_base_model(env)
            _start(env, supervisor)
            print(welcome.text(env), flush=True)
            supervisor.loud = True
            while True:
                supervisor.turn()
        except Stopped:
            supervisor.say("Stopping")
        except (ServiceError, ChildFailed, DatabaseError) as error:
            raise StartFailed(" ".join(str(error).split())) from None
        finally:
            _ignore_signals()
            supervisor.stop(STOP_ORDER, GRACE)


def check_port(env: Env) -> None:
    """Raises StartFailed if the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", env.port))
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise StartFailed(f"LORAYARD_PORT: port {env.port} {reason}") from None


def check_base_model(env: Env) -> None:
    """Raises StartFailed if the base model is neither a model's folder nor shaped like a hub id."""
    folder = Path(env.base_model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise StartFailed(f"LORAYARD_BASE_MODEL: {folder} has no config.json")
    elif not HUB_ID.fullmatch(env.base_model):
        raise StartFailed(f"LORAYARD_BASE_MODEL: there is no folder {env.base_model}")


def _start(env: Env, supervisor: Supervisor) -> None:
    stack = Stack(env)
    _make_folders(env)
    _start_services(stack, supervisor)
    supervisor.say("Migrating the database")
    call_command("migrate", verbosity=0, interactive=False)
    seeded = seed.is_done(env)
    connections.close_all()
    supervisor.say(f"Starting {', '.join(command.name for command in stack.processes)}")
    for command in stack.processes:
        supervisor.start(command)
    if not seeded:
        supervisor.finish(stack.seed, SEED_PATIENCE)
    local = Path(env.base_model).is_dir() or not env.own_engine
    readiness = Readiness(env, supervisor)
    supervisor.wait(readiness, LOCAL_PATIENCE if local else DOWNLOAD_PATIENCE, readiness.waiting_for)


def _make_folders(env: Env) -> None:
    for folder in ("logs", "store", "cache", "quarantine", "beat"):
        (env.home / folder).mkdir(exist_ok=True)
    env.run.mkdir(mode=0o711, exist_ok=True)  # PostgreSQL's user must pass through it
    if env.run.stat().st_uid != os.getuid():
        raise StartFailed(f"LORAYARD_HOME: its path is too long for sockets, and {env.run} is another user's")


def _start_services(stack: Stack, supervisor: Supervisor) -> None:
    if stack.services:
        supervisor.say("Starting " + " and ".join(service.name for service in stack.services))
    for service in stack.services:
        service.prepare()
        supervisor.start(service.command())
    for service in stack.services:
        supervisor.wait(service.ready, SERVICE_PATIENCE, lambda name=service.name: name)  # type: ignore[misc]
    if stack.postgres is not None:
        stack.postgres.ensure_database("lorayard")


class Readiness:
    """Asks /readyz, and says now and then who is not ready."""

    def __init__(self, env: Env, supervisor: Supervisor) -> None:
        self._url = f"http://127.0.0.1:{env.port}/readyz"
        self._supervisor = supervisor
        self._since = self._said = time.monotonic()
        self._down = ["web"]

    def waiting_for(self) -> str:
        return " and ".join(self._down)

    def __call__(self) -> bool:
        self._down = self._ask()
        now = time.monotonic()
        if self._down and now - self._said >= SAY_EVERY:
            self._said = now
            self._supervisor.say(f"Waiting for {self.waiting_for()} ({now - self._since:.0f} s)")
        return not self._down

    def _ask(self) -> list[str]:
        """Who is down."""
        try:
            with urllib.request.urlopen(self._url, timeout=10) as answer:  # noqa: S310 - our own address
                states = json.load(answer)
        except urllib.error.HTTPError as error:
            states = json.load(error)
        except OSError:
            return ["web"]
        return [name for name in ("database", "redis", "engine", "gateway") if states.get(name) != "ok"]


@contextlib.contextmanager
def _only_one(env: Env) -> Iterator[None]:
    """Holds home's lock. Raises StartFailed if another process does. The kernel frees it, however we end."""
    with (env.home / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StartFailed(f"LORAYARD_HOME: process {file.read().strip()} is already up in {env.home}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> NoReturn:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    """From here on we are stopping anyway."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
