"""What is put right about requests before anybody looks at them, and who may look at what."""

import json
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.test import AsyncClient
from rest_framework.test import APIClient
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from audit.models import Event
from config.edges import seen_through
from tenants.models import Tenant
from tests.processes import Platform

PAGE = "https://app.example"
PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def scope(client: str, *forwarded: str, proto: str = "") -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    headers += [(b"x-forwarded-proto", proto.encode())] if proto else []
    return {"type": "http", "scheme": "http", "client": (client, 9), "headers": headers}


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["192.0.2.7, 10.1.1.1"], "192.0.2.7"),
        ("10.0.0.1", ["1.1.1.1, 192.0.2.7", "10.1.1.1"], "192.0.2.7"),
        ("10.0.0.1", ["192.0.2.7:4711"], "192.0.2.7"),
        ("fd00::1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("10.0.0.1", ["::ffff:192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["10.9.9.9"], "10.9.9.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["x" * 4000], "10.0.0.1"),
        ("10.0.0.1", ["<script>, 10.2.2.2"], "10.2.2.2"),
        ("127.0.0.1", ["192.0.2.7"], "127.0.0.1"),
        ("192.0.2.1", ["10.0.0.1"], "192.0.2.1"),
    ],
)
def test_a_client_is_who_the_last_trusted_proxy_says(client: str, forwarded: list[str], address: str) -> None:
    assert seen_through(scope(client, *forwarded), PROXIES)["client"][0] == address


def test_a_scheme_is_believed_of_a_trusted_proxy_alone() -> None:
    schemes = [seen_through(scope(client, proto="https"), PROXIES)["scheme"] for client in ("10.0.0.1", "192.0.2.1")]
    assert schemes == ["https", "http"]


def test_an_address_that_a_client_makes_up_is_not_in_the_audit_log(platform: Platform) -> None:
    _, key = platform.tenant("hooli")
    headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "192.0.2.66", "X-Request-Id": "forged-address"}
    made = httpx.post(f"{platform.url}/api/v1/adapters", json={"name": "forged"}, headers=headers, timeout=60)
    assert made.status_code == 201, made.text
    query = f"SELECT address FROM {Event._meta.db_table} WHERE request_id = %s"
    assert platform.rows(query, "forged-address") == [{"address": "127.0.0.1"}]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/metrics"])
def test_probes_may_call_the_machine_by_any_name(platform: Platform, path: str) -> None:
    for host in ("10.42.0.7:8000", "lorayard-7d4f.default.svc", "evil.example"):
        assert httpx.get(platform.url + path, headers={"Host": host}, timeout=60).status_code == 200


def test_other_pages_answer_to_the_names_that_are_set(platform: Platform) -> None:
    for host, status in (("a.internal.example", 200), ("internal.example", 200), ("evil.example", 400)):
        assert httpx.get(f"{platform.url}/login/", headers={"Host": host}, timeout=60).status_code == status


async def test_health_is_503_without_an_engine(async_client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    away = {"engine_url": "unix:/nowhere/engine.sock", "redis_url": "unix:///nowhere/redis.sock"}
    monkeypatch.setattr(settings, "LORAYARD", settings.LORAYARD.model_copy(update=away))
    assert (await async_client.get("/health")).status_code == 503


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/api/v1/adapters", "/api/v1/adapters/", "/v1/files/"])
def test_a_slash_at_the_end_changes_nothing_and_no_cache_keeps_it(platform: Platform, path: str) -> None:
    _, key = platform.tenant("hooli")
    stranger, _ = platform.tenant("stranger")
    answer = httpx.get(platform.url + path, headers={"X-Api-Key": key}, timeout=60)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert stranger not in answer.text


def test_no_cache_keeps_a_refusal(platform: Platform) -> None:
    for path in ("/api/v1/adapters", "/api/v1/none", "/v1/models", "/v1/none"):
        assert httpx.get(platform.url + path, timeout=60).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions/", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/responses", "/v1/responses"),
        ("/v1/chat/completions/chat/completions", "/v1/chat/completions"),
    ],
)
def test_an_address_with_another_base_says_which_was_meant(platform: Platform, path: str, hint: str) -> None:
    for method in ("GET", "POST"):
        answer = httpx.request(method, platform.url + path, timeout=60)
        assert answer.status_code == 404
        assert f"Did you mean {hint}?" in answer.json()["error"]["message"]


# --- who may look


INSPECTIONS = [
    ({}, {}, 200),
    ({}, {"REMOTE_ADDR": "192.0.2.7"}, 403),
    ({}, {"REMOTE_ADDR": ""}, 403),
    ({}, {"REMOTE_ADDR": "::1"}, 200),
    ({}, {"REMOTE_ADDR": "::ffff:127.0.0.1"}, 200),
    ({}, {"headers": {"X-Forwarded-For": "127.0.0.1"}}, 403),
    ({"inspect_from": "anywhere"}, {"REMOTE_ADDR": "192.0.2.7"}, 200),
    (
        {"inspect_token": "t" * 20},
        {"REMOTE_ADDR": "192.0.2.7", "headers": {"Authorization": f"Bearer {'t' * 20}"}},
        200,
    ),
    (
        {"inspect_token": "t" * 20},
        {"REMOTE_ADDR": "192.0.2.7", "headers": {"Authorization": f"Bearer {'t' * 19}"}},
        403,
    ),
    ({}, {"REMOTE_ADDR": "192.0.2.7", "headers": {"Authorization": "Bearer "}}, 403),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("told", "call", "status"), INSPECTIONS)
@pytest.mark.parametrize("path", ["/metrics", "/api/schema", "/api/docs"])
def test_who_may_look_at_numbers_and_schema(
    monkeypatch: pytest.MonkeyPatch, path: str, told: dict[str, Any], call: dict[str, Any], status: int
) -> None:
    away = {"engine_url": "unix:/nowhere/engine.sock", **told}
    monkeypatch.setattr(settings, "LORAYARD", settings.LORAYARD.model_copy(update=away))
    assert APIClient().get(path, **call).status_code == status


@pytest.mark.django_db
def test_a_key_sees_the_schema_but_not_the_numbers(acme: Tenant, client_of: Callable[..., APIClient]) -> None:
    client, far = client_of(acme, "adapters:read"), {"REMOTE_ADDR": "192.0.2.7"}
    assert [client.get(path, **far).status_code for path in ("/api/schema", "/metrics")] == [200, 403]  # type: ignore[arg-type]


# --- browsers


def preflight(platform: Platform, path: str, origin: str) -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"
    return httpx.options(platform.url + path, headers=headers, timeout=60)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/files"])
def test_a_page_that_is_listed_may_call_the_data_plane(platform: Platform, path: str) -> None:
    asked = preflight(platform, path, PAGE)
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
    assert "POST" in asked.headers["access-control-allow-methods"]
    for origin, key in ((PAGE, platform.tenant("hooli")[1]), (PAGE, "none")):
        answer = httpx.get(
            platform.url + path, headers={"Origin": origin, "Authorization": f"Bearer {key}"}, timeout=60
        )
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "origin" in answer.headers["vary"].lower()
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("/v1/models", "https://evil.example"),
        ("/v1/models", "https://app.example.evil.example"),
        ("/v1/models", "null"),
        ("/api/v1/adapters", PAGE),
        ("/login/", PAGE),
    ],
)
def test_other_pages_and_other_planes_are_told_nothing(platform: Platform, path: str, origin: str) -> None:
    answers = [
        preflight(platform, path, origin),
        httpx.get(platform.url + path, headers={"Origin": origin}, timeout=60),
    ]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control-")]


def handshake(platform: Platform, origin: str | None, *subprotocols: str, key: str = "") -> tuple[int, str | None]:
    """The status, and the subprotocol that the server chose."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    names: Any = [Subprotocol(name) for name in subprotocols] or None
    try:
        url = platform.url.replace("http", "ws") + "/v1/responses"
        with connect(
            url, origin=Origin(origin) if origin else None, subprotocols=names, additional_headers=headers
        ) as ws:
            assert ws.response is not None
            return ws.response.status_code, ws.subprotocol
    except InvalidStatus as refused:
        return refused.response.status_code, None


def test_a_browser_sends_its_key_as_a_subprotocol_which_is_never_echoed(platform: Platform) -> None:
    _, key = platform.tenant("hooli")
    hidden = f"openai-insecure-api-key.{key}"
    assert handshake(platform, PAGE, "realtime", hidden) == (101, "realtime")
    assert handshake(platform, PAGE, hidden) == (101, None)
    assert handshake(platform, PAGE, "realtime", hidden + "0") == (401, None)
    assert handshake(platform, PAGE, "realtime") == (401, None)


def test_a_websocket_opens_for_listed_pages_own_pages_and_clients_that_are_no_browsers(platform: Platform) -> None:
    _, key = platform.tenant("hooli")
    origins = [None, PAGE, "http://localhost:3000", platform.url, "https://evil.example", "null"]
    assert [handshake(platform, origin, key=key)[0] for origin in origins] == [101, 101, 101, 101, 403, 403]


def test_a_page_that_is_refused_is_told_so_in_the_apis_shape(platform: Platform) -> None:
    _, key = platform.tenant("hooli")
    with pytest.raises(InvalidStatus) as refused:
        connect(
            platform.url.replace("http", "ws") + "/v1/responses",
            origin=Origin("https://evil.example"),
            additional_headers={"Authorization": f"Bearer {key}"},
        )
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "origin_not_allowed"
