"""What the ledger of a whole platform says of calls that ended in every way."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from openai import NotFoundError

from tests.gateway.conftest import Customer
from tests.processes import wait_for

Ledger = Callable[[str], list[dict[str, Any]]]
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
