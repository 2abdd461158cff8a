"""Sets, evaluations and workers of a tenant whose adapter is ready, and a data plane that answers what a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from adapters.base import describe
from audit.services import SYSTEM
from evaluations.models import Evaluation, EvaluationSet
from evaluations.services import create_set, request_evaluation
from registry.models import Adapter, Alias, BaseModel, State, Version
from tenants.models import Tenant

Reply = tuple[int, dict[str, str], dict[str, Any]]


def line(content: str = "hi", scorer: str = "exact", expected: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "scorer": scorer, "expected": expected, **more}


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


@pytest.fixture(scope="session")
def spec(tiny_base_model: Any) -> dict[str, Any]:
    told: dict[str, Any] = describe(str(tiny_base_model)).to_json()
    return told


@pytest.fixture
def base(db: None, spec: dict[str, Any]) -> BaseModel:
    return BaseModel.objects.create(name="tiny", source="/models/tiny", spec=spec, is_default=True)


@pytest.fixture
def make_version(base: BaseModel) -> Callable[..., Version]:
    """make_version(acme, "support"): the adapter's next version, ready, without files."""

    def make(tenant: Tenant, name: str = "support") -> Version:
        adapter, _ = Adapter.objects.get_or_create(tenant=tenant, name=name, base_model=base)
        number = adapter.versions.count() + 1
        digest = f"sha256:{number:064x}"
        version = Version.objects.create(
            adapter=adapter, number=number, state=State.READY, digest=digest, uploader="system:test"
        )
        Alias.objects.get_or_create(adapter=adapter, name="stable", defaults={"version": version})
        return version

    return make


@pytest.fixture
def make_set() -> Callable[..., EvaluationSet]:
    def make(tenant: Tenant, *rows: dict[str, Any], name: str = "greetings") -> EvaluationSet:
        return create_set(tenant, name, jsonl(*(rows or (line(),))), actor=SYSTEM)

    return make


@pytest.fixture
def ask_for() -> Callable[..., Evaluation]:
    """ask_for(acme, set, "support"): queued; no worker is told."""
    return lambda tenant, wanted, model="support": request_evaluation(tenant, wanted, model, actor=SYSTEM)


@dataclass
class DataPlane:
    """Answers /v1/chat/completions over real HTTP; `reply` makes the answer out of the last message's content."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    reply: Callable[[dict[str, Any]], Reply] = lambda body: said(body["messages"][-1]["content"])


def said(text: str) -> Reply:
    choice = {"message": {"content": text}, "logprobs": None}
    return 200, {}, {"choices": [choice], "usage": {"completion_tokens": len(text)}}


def failed(status: int, code: str = "x", **headers: str) -> Reply:
    return status, headers, {"error": {"code": code, "message": "No.", "type": "x", "param": None}}


@pytest.fixture
def data_plane(settings: Any) -> Iterator[DataPlane]:
    plane = DataPlane()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            plane.asked.append(body)
            plane.keys.add(self.headers["Authorization"].removeprefix("Bearer "))
            status, headers, reply = plane.reply(body)
            raw = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        plane.url = f"http://127.0.0.1:{server.server_port}"
        settings.LORAYARD = settings.LORAYARD.model_copy(update={"gateway_url": plane.url})
        yield plane
        server.shutdown()
