"""What one key and one tenant hold open is bounded, and an honest 429 beyond; connections never starve the probes."""

import contextlib
import gzip
import io
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import httpx
import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from gateway import places
from gateway.authentication import Caller
from gateway.errors import TooManyLarge, Unauthorized
from gateway.exchange import Exchange
from gateway.handler import LARGE, SMALL, Door, _decoded
from gateway.places import Place
from gateway.views import GatewayRequest
from tests.gateway.conftest import Customer
from tests.processes import Platform, wait_for, web

PER_KEY, PER_TENANT, CONNECTIONS = 3, 4, 40
LONG: dict[str, Any] = {"max_tokens": 450, "extra_body": {"ignore_eos": True}}
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def narrow(platform: Platform) -> Iterator[str]:
    """A web process with little room."""
    bounds = {"LORAYARD_OPEN_PER_KEY": PER_KEY, "LORAYARD_OPEN_PER_TENANT": PER_TENANT}
    told = {name: str(bound) for name, bound in {**bounds, "LORAYARD_CONNECTIONS": CONNECTIONS}.items()}
    with web(platform, files=400, **told) as url:
        yield url


@pytest.fixture
def here(narrow: str, buyer: Customer) -> Customer:
    return replace(buyer, url=narrow, _clients={})


@pytest.fixture
def stranger_here(narrow: str, stranger: Customer) -> Customer:
    return replace(stranger, url=narrow, _clients={})


def held(customer: Customer, count: int, stack: contextlib.ExitStack) -> None:
    """So many places of its key's, by WebSockets, which wait for ever."""
    for _ in range(count):
        url = customer.url.replace("http", "ws") + "/v1/responses"
        stack.enter_context(connect(url, additional_headers={"Authorization": f"Bearer {customer.key}"}))


def refused(customer: Customer) -> openai.RateLimitError:
    with pytest.raises(openai.RateLimitError) as told:
        customer.openai.models.list()
    return told.value


def freed(customer: Customer) -> None:
    wait_for(lambda: customer.request("GET", "/v1/models").status_code == 200, 30, "a place becoming free")


def test_a_key_holds_no_more_open_than_it_may(here: Customer, stranger_here: Customer) -> None:
    with contextlib.ExitStack() as stack:
        held(here, PER_KEY, stack)
        told = refused(here)
        assert (told.code, told.type) == ("too_many_open_requests", "rate_limit_error")
        assert told.response.headers["retry-after"] == "1"
        assert f"key has {PER_KEY}" in told.message
        with pytest.raises(InvalidStatus) as denied:
            held(here, 1, stack)
        assert denied.value.response.status_code == 429
        assert json.loads(denied.value.response.body or b"")["error"]["code"] == "too_many_open_requests"
        assert stranger_here.chat("notes")
    freed(here)


def test_a_stream_holds_a_place_until_its_end(here: Customer, stranger_here: Customer) -> None:
    with contextlib.ExitStack() as stack:
        held(here, PER_KEY - 1, stack)
        stream = here.openai.chat.completions.create(model="support", messages=HELLO, stream=True, max_tokens=8)
        next(iter(stream))
        assert list(stream)
        freed(here)
        left = here.openai.chat.completions.create(model="support", messages=HELLO, stream=True, **LONG)
        refused(here)
        assert stranger_here.chat("notes")
        left.close()
        freed(here)


def test_a_response_over_a_websocket_takes_a_place_besides(here: Customer) -> None:
    with contextlib.ExitStack() as stack:
        held(here, PER_KEY - 1, stack)
        with here.openai.responses.connect() as connection:
            connection.send({"type": "response.create", "model": "support", "input": "hello"})
            told: Any = connection.recv()
            assert (told.type, told.status, told.error.code) == ("error", 429, "too_many_open_requests")
            assert told.error.headers["retry-after"] == "1"
    freed(here)


def test_the_keys_of_a_tenant_share_what_it_may_hold(
    here: Customer, stranger_here: Customer, issue: Callable[..., tuple[str, str]]
) -> None:
    other = replace(here, key=issue("inference")[0], _clients={})
    with contextlib.ExitStack() as stack:
        held(here, PER_KEY, stack)
        held(other, PER_TENANT - PER_KEY, stack)
        assert f"tenant has {PER_TENANT}" in refused(other).message
        assert stranger_here.chat("notes")
    freed(other)


def test_connections_that_say_nothing_keep_nobody_out(here: Customer, stranger_here: Customer) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(500):  # more than the process may open files
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        assert httpx.get(f"{here.url}/healthz", timeout=60).status_code == 200
        assert here.chat("support")
        assert stranger_here.chat("notes")


def test_the_process_answers_probes_when_every_connection_is_taken(here: Customer, narrow: str) -> None:
    host, port = narrow.removeprefix("http://").split(":")
    body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20)).sendall(body)
        wait_for(lambda: httpx.get(f"{narrow}/v1/models", timeout=60).status_code == 503, 20, "all being taken")
        refused, alive, well = [httpx.get(narrow + path, timeout=60) for path in ("/v1/models", "/healthz", "/health")]
    assert refused.json()["error"]["code"] == "too_many_connections"
    assert refused.headers["retry-after"] == "1"
    assert alive.status_code == 200
    assert "engine" in well.json(), "whatever it says of others, it was asked"
    freed(here)


def test_a_large_body_needs_a_key_that_may_infer(
    platform: Platform, buyer: Customer, issue: Callable[..., tuple[str, str]]
) -> None:
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer none"}, 401),
        ({"Authorization": f"Bearer {issue('adapters:read')[0]}"}, 403),
        ({"Authorization": f"Bearer {buyer.key}"}, 400),
    ):
        url = f"{buyer.url}/v1/chat/completions"
        assert httpx.post(url, content=b" " * (2 << 20), headers=headers, timeout=60).status_code == status


def test_who_closes_its_half_gets_its_answer(buyer: Customer) -> None:
    body = json.dumps({"model": "support", "messages": HELLO, "max_tokens": 20, "temperature": 0}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"X-Api-Key: {buyer.key}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    host, port = buyer.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(head.encode() + body)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    *_, final, content = answer.split(b"\r\n\r\n")
    assert final.startswith(b"HTTP/1.1 200 ")
    assert json.loads(content)["choices"][0]["message"]["content"] == buyer.chat("support", tokens=20)


def sending(customer: Customer, announced: int, count: int, stack: contextlib.ExitStack) -> None:
    """So many bodies of its key's, of which hardly anything has come yet."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: {customer.key}\r\nContent-Length: {announced}"
    host, port = customer.url.removeprefix("http://").split(":")
    for _ in range(count):
        sender = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        sender.sendall(f"{head}\r\n\r\n".encode() + b" " * 9)


def test_a_body_takes_a_place_before_much_of_it_is_read(here: Customer, stranger_here: Customer) -> None:
    with contextlib.ExitStack() as stack:
        sending(here, 2 * SMALL, PER_KEY, stack)
        wait_for(lambda: here.request("GET", "/v1/models").status_code == 429, 30, "all places being taken")
        assert refused(here).code == "too_many_open_requests"
        assert stranger_here.chat("notes")
    freed(here)


def test_a_key_sends_a_few_large_bodies_at_a_time(buyer: Customer, stranger: Customer) -> None:
    def large(customer: Customer) -> httpx.Response:
        headers = {"X-Api-Key": customer.key}
        return httpx.post(
            f"{customer.url}/v1/chat/completions", content=b" " * (2 * LARGE), headers=headers, timeout=60
        )

    with contextlib.ExitStack() as stack:
        sending(buyer, 2 * LARGE, places.LARGE_PER_KEY, stack)
        wait_for(lambda: large(buyer).status_code == 429, 30, "all of its large bodies being under way")
        told = large(buyer)
        assert (told.json()["error"]["code"], told.headers["retry-after"]) == ("too_many_large_bodies", "1")
        assert buyer.chat("support")
        assert large(stranger).status_code == 400
    wait_for(lambda: large(buyer).status_code == 400, 30, "a large body being let in")


def test_a_body_s_place_is_given_back_when_it_is_parsed() -> None:
    caller = cast(Caller, SimpleNamespace(key="key", tenant=SimpleNamespace(pk="tenant")))
    request = GatewayRequest({"type": "http", "method": "POST", "path": "/", "headers": []}, body := io.BytesIO(b"{}"))
    request.exchange = Exchange.of(None)
    for place in (others := [Place() for _ in range(places.LARGE_PER_KEY - 1)]):
        place.take_large(caller)
    with request.exchange.place as place:
        place.take_large(caller)
        place.take_large(caller)
        with pytest.raises(TooManyLarge), Place() as beyond:
            beyond.take_large(caller)
        assert request.parsed(bytes) == b"{}"
        assert body.closed
        with Place() as next_one:
            next_one.take_large(caller)
    for place in others:
        place.leave_large()
    assert not places._large


async def test_nothing_large_is_decoded_for_who_shows_no_key() -> None:
    door = Door(Exchange.of(None), {})
    assert await _decoded(gzip.compress(bytes(SMALL)), "gzip", door) == bytes(SMALL)
    with pytest.raises(Unauthorized):
        await _decoded(gzip.compress(bytes(SMALL + 1)), "gzip", door)
