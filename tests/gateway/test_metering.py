"""What the ledger of a whole platform says of calls that ended in every way."""

import asyncio
import json
import socket
import uuid
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import NotFoundError

from tests.gateway.conftest import Customer
from tests.processes import wait_for

Ledger = Callable[[str], list[dict[str, Any]]]
Load = Callable[[], Awaitable[tuple[float, float]]]
HELLO: Any = [{"role": "user", "content": "hello"}]
LONG: Any = {"max_tokens": 450, "extra_body": {"ignore_eos": True}}
ENDED_WITHIN = 10  # seconds


@pytest.fixture
def ledger(platform: Any) -> Ledger:
    """ledger(request id): the calls that are written of it and over, one at least."""

    def read(request_id: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = platform.rows(
            "SELECT call.*, slug FROM metering_call call JOIN tenants_tenant tenant ON tenant.id = tenant_id"
            " WHERE request_id = %s AND outcome <> 'open'",
            request_id,
        )
        return rows

    def over(request_id: str) -> list[dict[str, Any]]:
        wait_for(lambda: read(request_id), ENDED_WITHIN, "the call's end")
        return read(request_id)

    return over


@pytest.fixture
def named() -> dict[str, str]:
    """A header with a request id of its own."""
    return {"x-request-id": f"test-{uuid.uuid4().hex}"}


def test_an_answer_is_written_with_its_tokens_version_and_key(
    buyer: Customer, ledger: Ledger, named: dict[str, str]
) -> None:
    answer = buyer.openai.chat.completions.create(
        model="support@v2", messages=HELLO, max_tokens=5, n=3, extra_headers=named, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    (call,) = ledger(named["x-request-id"])
    assert (call["prompt"], call["completion"]) == (answer.usage.prompt_tokens, 15)
    assert (call["slug"], call["adapter"], call["version"]) == ("gate-acme", "support", 2)
    assert (call["outcome"], call["purpose"], len(call["digest"])) == ("finished", "live", 71)


def test_every_endpoint_is_metered(buyer: Customer, base_name: str, ledger: Ledger, named: dict[str, str]) -> None:
    client, name = buyer.openai, named["x-request-id"]
    client.completions.create(model=base_name, prompt=["a", "b"], max_tokens=2, extra_headers=named)
    list(client.completions.create(model=base_name, prompt="a", max_tokens=2, stream=True, extra_headers=named))
    client.responses.create(model=base_name, input="a", max_output_tokens=2, extra_headers=named)
    list(client.responses.create(model=base_name, input="a", max_output_tokens=2, stream=True, extra_headers=named))
    with client.responses.connect(extra_headers=named) as socket:
        for _ in range(2):
            socket.response.create(model=base_name, input="a", max_output_tokens=2)
            while socket.recv().type not in ("response.completed", "response.incomplete"):
                pass
    wait_for(lambda: len(ledger(name)) == 6, ENDED_WITHIN, "six calls")
    assert {(call["outcome"], call["adapter"], call["digest"]) for call in ledger(name)} == {("finished", "", "")}


async def until(load: Load, condition: Callable[[float, float], bool]) -> None:
    """condition: of how many sequences run or wait, and how many tokens were ever made."""
    while not condition(*await load()):  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.02)


async def left_unread(customer: Customer, headers: dict[str, str], load: Load) -> None:
    """A client asks for four long answers, reads nothing, and goes when the engine has nothing to do any more."""
    at = urlsplit(customer.url)
    body = {"model": "support", "messages": HELLO, "n": 4, "max_tokens": 450, "stream": True, "ignore_eos": True}
    content = json.dumps(body).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((at.hostname, at.port))
        lines = [*(f"{name}: {value}" for name, value in headers.items()), f"Content-Length: {len(content)}"]
        head = ["POST /v1/chat/completions HTTP/1.1", f"Host: {at.netloc}", f"Authorization: Bearer {customer.key}"]
        _, before = await load()
        client.sendall("\r\n".join([*head, *lines, "", ""]).encode() + content)
        await until(load, lambda running, made: made > before and not running)
        assert (await load())[1] - before < 4 * 450, "the engine did not wait for the reader"


async def left_early(customer: Customer, headers: dict[str, str], load: Load) -> None:
    stream: Any = await customer.async_openai.chat.completions.create(
        model="support", messages=HELLO, stream=True, n=4, extra_headers=headers, **LONG
    )
    for _ in range(9):
        await anext(stream)
    await stream.close()


async def left_waiting(customer: Customer, headers: dict[str, str], load: Load) -> None:
    """A client that has no stream goes before its answer is there."""
    asked = customer.async_openai.chat.completions.create(
        model="support", messages=HELLO, extra_headers=headers, **LONG
    )
    _, before = await load()
    call = asyncio.create_task(asked)
    await until(load, lambda _, made: made > before)
    call.cancel()


async def read_slowly(customer: Customer, headers: dict[str, str], load: Load) -> None:
    stream: Any = await customer.async_openai.chat.completions.create(
        model="support", messages=HELLO, stream=True, n=2, extra_headers=headers, **LONG
    )
    async for chunk in stream:
        if chunk.choices and "e" in (chunk.choices[0].delta.content or ""):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("client", [left_unread, left_early, left_waiting, read_slowly])
async def test_the_ledger_has_what_the_engine_made_however_the_client_behaves(
    client: Callable[..., Any], buyer: Customer, ledger: Ledger, named: dict[str, str], load: Load
) -> None:
    await until(load, lambda running, _: not running)  # of what earlier tests left
    _, before = await load()
    await client(buyer, named, load)
    (call,) = await asyncio.to_thread(ledger, named["x-request-id"])
    assert call["outcome"] == ("finished" if client is read_slowly else "cancelled")
    assert 0 < call["completion"] == (await load())[1] - before


async def test_a_client_that_leaves_is_written_once_with_what_it_got(
    buyer: Customer, ledger: Ledger, named: dict[str, str]
) -> None:
    stream: Any = await buyer.async_openai.chat.completions.create(
        model="support", messages=HELLO, stream=True, extra_headers=named, **LONG
    )
    for _ in range(4):
        await anext(stream)
    await stream.close()
    (call,) = await asyncio.to_thread(ledger, named["x-request-id"])
    assert call["outcome"] == "cancelled"
    assert call["prompt"] > 0
    assert 0 < call["completion"] < 450


def test_what_the_engine_refuses_has_failed_and_what_never_reached_it_is_no_call(
    buyer: Customer, base_name: str, ledger: Ledger, named: dict[str, str]
) -> None:
    with pytest.raises(NotFoundError):
        buyer.openai.completions.create(model="gate-globex/notes", prompt="a", extra_headers=named)
    buyer.openai.completions.create(model=base_name, prompt="a", max_tokens=1, extra_headers=named)
    assert [call["outcome"] for call in ledger(named["x-request-id"])] == ["finished"]
