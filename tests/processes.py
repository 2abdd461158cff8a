"""Runs the platform's own command line in processes of its own, for tests that look at it from outside."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
import pytest

from config.processes import end, kill_group

ROOT = Path(__file__).resolve().parents[1]
OURS = ("LORAYARD_", "DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DJANGO_")


def environment(**told: str) -> dict[str, str]:
    """This process' environment with nothing of ours in it but what is told here."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | told


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Asks again and again until the condition holds. Fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on, and below those of outgoing connections: none takes it before its owner."""
    for port in random.SystemRandom().sample(range(10_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail("every port is taken")


def manage(told: Mapping[str, str], *arguments: str, seconds: float = 100) -> subprocess.CompletedProcess[str]:
    """`manage.py <arguments>`, to its end."""
    argv = [sys.executable, str(ROOT / "manage.py"), *arguments]
    return subprocess.run(
        argv, env=environment(**told), capture_output=True, text=True, timeout=seconds, cwd=ROOT, check=False
    )


class Up:
    """`manage.py up`, running. Leaving the block stops it as a person would, and kills it if that takes too long."""

    def __init__(self, told: Mapping[str, str], log: Path) -> None:
        self._told = dict(told)
        self._log = log
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        argv = [sys.executable, str(ROOT / "manage.py"), "up"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, env=environment(**self._told), stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def output(self) -> str:
        return self._log.read_text()

    def ready(self, seconds: float = 300) -> Self:
        """Waits for the words that say so. Fails the test if the process ends before."""
        wait_for(lambda: "Lorayard is ready" in self.output or self.process.poll() is not None, seconds, "being ready")
        assert self.process.poll() is None, self.output
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        """Its exit status. Once it has ended, this does nothing."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            kill_group(self.process.pid)


@contextlib.contextmanager
def web(platform: "Platform", *, files: int | None = None, **told: str) -> Iterator[str]:
    """The URL of one more web process of the platform's, which may open so many files and is told this besides."""
    port = free_port()
    ours = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]), "LORAYARD_PORT": str(port)}
    ours |= {"DJANGO_SETTINGS_MODULE": "config.settings", "LORAYARD_DATABASE_ROLE": "lorayard_web"}
    bound = [] if files is None else ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    log = Path(platform.environment["LORAYARD_HOME"]) / f"web-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*bound, sys.executable, "-m", "config.web"],
            env=environment(**{**platform.environment, **ours, "LORAYARD_DATABASE_POOL": "4", **told}),
            cwd=ROOT,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or _answers(url), 100, "the web process answering")
        assert process.poll() is None, log.read_text()[-2000:]
        yield url
    finally:
        end(process, signal.SIGTERM, 20)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    return False


@dataclass
class Platform:
    """A whole platform in processes of its own: web, worker, beat, and the engine."""

    url: str
    environment: Mapping[str, str]  # for commands that are meant for it
    _made: dict[str, str] = field(default_factory=dict)

    @cached_property
    def operator_key(self) -> str:
        return self.key()

    def key(self, *arguments: str) -> str:
        """A new key by `manage.py create_key`; without a tenant, an operator's."""
        made = manage(self.environment, "create_key", *arguments)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def call(self, method: str, path: str, key: str, **body: object) -> Any:
        """A call to the management API, whose answer is JSON. Fails the test on any status from 400 on."""
        bearer = {"Authorization": f"Bearer {key}"}
        answer = httpx.request(method, f"{self.url}/api/v1/{path}", headers=bearer, json=body or None, timeout=60)
        assert answer.is_success, answer.text
        return answer.json()

    def rows(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        """What its database says, asked as its owner."""
        url = self.environment["DATABASE_URL"]
        with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
            return list(connection.execute(query, parameters).fetchall())

    def tenant(self, slug: str) -> tuple[str, str]:
        """A tenant of this name and a key that may do all a tenant's key may; made when first asked for."""
        if slug not in self._made:
            self.call("POST", "tenants", self.operator_key, slug=slug, name=slug.title())
            self._made[slug] = self.key(slug)
        return slug, self._made[slug]
