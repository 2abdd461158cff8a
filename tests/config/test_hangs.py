"""What the platform needs hangs: stopped, not killed, it accepts connections and says nothing. /v1 must go on."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from django.conf import settings
from django.db import connection

from tenants.postgresql import patience
from tests.conftest import Services
from tests.processes import Platform, wait_for

NEVER = 45.0  # seconds, which nothing takes that does not hang; a busy machine needs much of it


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)


def server(program: str) -> list[psutil.Process]:
    """The tests' own PostgreSQL or Redis: it works in their home."""
    home = str(settings.LORAYARD.home)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if program in process.name() and process.cwd().startswith(f"{home}/"):
                found += [process, *process.children(recursive=True)]
    assert found, program
    return found


@pytest.fixture
def acme(platform: Platform) -> Any:
    """A client of a tenant's, who waits for nothing too long."""
    _, key = platform.tenant("hangs")
    with httpx.Client(base_url=platform.url, headers={"Authorization": f"Bearer {key}"}, timeout=NEVER) as client:
        yield client


def test_v1_needs_no_redis_and_calls_that_enqueue_do_not_wait_for_one_that_hangs(acme: httpx.Client) -> None:
    hook = {"url": f"https://example.com/{time.time()}", "events": ["webhook.ping"]}
    endpoint = acme.post("/api/v1/webhooks", json=hook).json()["id"]
    statuses: list[int] = []
    with stopped(server("redis-server")):
        pings = [
            threading.Thread(target=lambda: statuses.append(acme.post(f"/api/v1/webhooks/{endpoint}/ping").status_code))
            for _ in range(20)
        ]
        for ping in pings:
            ping.start()
        assert acme.get("/v1/models").status_code == 200
        for ping in pings:
            ping.join()
        assert acme.get("/v1/models").status_code == 200
        shown = acme.get("/readyz").json()
        assert (shown["redis"], shown["database"]) == ("down", "ok")
    assert len(statuses) == 20
    assert max(statuses) < 300
    wait_for(lambda: acme.get("/readyz").json()["redis"] == "ok", NEVER, "Redis answering again")


def test_a_database_that_hangs_is_one_that_is_away(acme: httpx.Client) -> None:
    assert acme.get("/v1/models").status_code == 200
    time.sleep(1)  # so that the key is not remembered
    with stopped(server("postgres")):
        refused = acme.get("/v1/models")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        shown = acme.get("/readyz")
        assert (shown.status_code, shown.json()["database"]) == (503, "down")
        assert acme.get("/healthz").status_code == 200
    wait_for(lambda: acme.get("/v1/models").status_code == 200, NEVER, "the database answering again")


def test_a_query_is_waited_for_no_longer_than_was_promised(services: Services) -> None:
    url = services.database("lorayard")
    with patience.Connection.connect(url, autocommit=True) as session:
        began = time.monotonic()
        with patience.within(began + 0.5), pytest.raises(patience.ServerSilent):
            session.execute("SELECT pg_sleep(60)")
        assert time.monotonic() - began < NEVER
        assert session.closed
    with patience.Connection.connect(url, autocommit=True) as session, patience.within(time.monotonic() + 30):
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_whoever_holds_all_other_connections_leaves_the_data_planes() -> None:
    share = patience.Share(2)
    share.take()
    share.take()
    with pytest.raises(psycopg.OperationalError):
        share.take()
    share.give_back()
    share.take()


@pytest.mark.django_db
def test_our_own_options_are_not_told_to_the_server() -> None:
    assert "kept" not in connection.get_connection_params()


def test_ready_means_that_a_chat_is_answered_now(
    platform: Platform, acme: httpx.Client, base_model_folder: Any
) -> None:
    """The web is killed; the first thing asked once it is ready is a chat, which waits for no tokenizer any more."""
    (web,) = (p for p in psutil.process_iter() if _serves(p, platform.environment["LORAYARD_PORT"]))
    web.kill()
    web.wait(NEVER)
    wait_for(lambda: _ready(acme), 2 * NEVER, "being ready again")
    models = acme.get("/v1/models").json()["data"]
    answer = acme.post(
        "/v1/chat/completions",
        json={"model": models[0]["id"], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    )
    assert answer.status_code == 200
    assert float(answer.headers["openai-processing-ms"]) < 1000 * NEVER


def _serves(process: psutil.Process, port: str) -> bool:
    with contextlib.suppress(psutil.Error):
        line = process.cmdline()
        return "config.web" in line and port in line
    return False


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz?exclude=periodic").status_code == 200
    except httpx.TransportError:
        return False
