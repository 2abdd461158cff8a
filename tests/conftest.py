"""What every test may ask for: real PostgreSQL, Redis, engine and platform, started when first asked for and once.

The addresses are chosen here, when pytest reads this file and before Django is configured; nothing is started yet then.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

HOME = Path(tempfile.mkdtemp(prefix="lytest-"))
for name in [name for name in os.environ if name.startswith("LORAYARD_")]:
    del os.environ[name]
for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY"):
    os.environ.pop(name, None)
os.environ |= {
    "LORAYARD_HOME": str(HOME),
    "DJANGO_SETTINGS_MODULE": "config.settings",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
}

import django  # noqa: E402

django.setup()  # here rather than in pytest-django's own time, so that tests can import models at the top

from config import env, processes, services  # noqa: E402

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Asks again and again until the condition holds. Fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def _services() -> Iterator[None]:
    """PostgreSQL and Redis, with nothing in them."""
    run = env.load().run
    ours: tuple[services.Service, ...] = (
        services.Postgres(HOME / "postgres", run / "postgres", FAST),
        services.Redis(HOME / "redis", run / "redis.sock"),
    )
    running = []
    try:
        for service in ours:
            service.prepare()
            with (HOME / f"{service.name}.log").open("wb") as log:
                running.append((service.command(), service.command().popen(stdout=log, stderr=log)))
        for service in ours:
            wait_for(service.ready, 30, f"{service.name} becoming ready")
        ours[0].ensure_database("lorayard")
        yield
    finally:
        for command, process in reversed(running):
            processes.end(process, command.stop, 10)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(_services: None) -> None:
    """pytest-django makes its database in ours."""
