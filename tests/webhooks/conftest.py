"""A receiver on loopback: a real HTTP server that keeps what it was sent and answers as it is told."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from audit.services import SYSTEM
from config.env import Env
from tenants.models import Tenant
from webhooks import delivery, services
from webhooks.models import Delivery, Endpoint

Commits = Callable[..., AbstractContextManager[Any]]


@dataclass
class Receiver:
    """`answers` are the statuses to come; 200 when there are none left."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture(scope="session")
def _receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append((told, body))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield receiver
    server.shutdown()
    server.server_close()


@pytest.fixture
def receiver(_receiving: Receiver) -> Receiver:
    _receiving.answers, _receiving.headers, _receiving.got = [], {}, []
    return _receiving


@pytest.fixture
def loopback_allowed(settings: Any) -> None:
    """What an operator sets to let webhooks into a private network."""
    env: Env = settings.LORAYARD
    settings.LORAYARD = Env(**{**env.model_dump(), "webhook_allow": "127.0.0.0/8"})


@pytest.fixture
def endpoint(acme: Tenant, receiver: Receiver, loopback_allowed: None) -> Endpoint:
    return services.create_endpoint(acme, receiver.url, ["*"], actor=SYSTEM)[0]


@pytest.fixture
def emitted(django_capture_on_commit_callbacks: Commits) -> Callable[..., Delivery]:
    """Emits and returns the one delivery that waits for a worker: `emitted(acme, "rollout.paused", {})`."""

    def run(tenant: Tenant, event: str = "rollout.paused", data: Any = None) -> Delivery:
        with django_capture_on_commit_callbacks():
            services.emit(tenant, event, data or {"rollout": "r1"})
        return Delivery.objects.for_tenant(tenant).get()

    return run


@pytest.fixture
def attempt(django_capture_on_commit_callbacks: Commits) -> Callable[[Delivery], Delivery]:
    """Lets a worker try the delivery now, however long it was to wait."""

    def run(row: Delivery) -> Delivery:
        Delivery.objects.filter(pk=row.pk).update(next_at=row.created_at)
        with django_capture_on_commit_callbacks():
            delivery.deliver(row.pk)
        row.refresh_from_db()
        return row

    return run
