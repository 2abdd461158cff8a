"""A prompt of megabytes is refused at every door, by the name of its field, and keeps nobody waiting."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Customer

LONG = "ab " * 500_000
DOORS: list[tuple[str, dict[str, Any], str]] = [
    ("chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    ("chat/completions", {"messages": [{"role": "user", "content": LONG[:600]}] * 2500}, "messages"),
    ("completions", {"prompt": LONG}, "prompt"),
    ("completions", {"prompt": ["a", LONG]}, "prompt"),
    ("completions", {"prompt": [1] * 600_000}, "prompt"),
    ("responses", {"input": LONG}, "input"),
    ("responses", {"input": "a", "instructions": LONG}, "input"),
]


@pytest.mark.parametrize(("door", "body", "param"), DOORS, ids=[f"{door}-{n}" for n, (door, *_) in enumerate(DOORS)])
def test_a_long_prompt_is_refused_by_name(buyer: Customer, door: str, body: dict[str, Any], param: str) -> None:
    error = buyer.request("POST", f"/v1/{door}", json={"model": "support", **body}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_a_websocket_refuses_a_long_prompt_and_goes_on(buyer: Customer) -> None:
    with buyer.openai.responses.connect() as connection:
        connection.send({"type": "response.create", "model": "support", "input": LONG})
        told: Any = connection.recv()
        assert (told.type, told.error.code) == ("error", "context_length_exceeded")
        connection.send({"type": "response.create", "model": "support", "input": "a", "max_output_tokens": 1})
        last: Any = connection.recv()
        while last.type not in ("response.completed", "response.incomplete", "error"):
            last = connection.recv()
        assert last.type != "error"


async def test_a_stranger_is_answered_while_long_prompts_are_read(buyer: Customer, stranger: Customer) -> None:
    async def flood(client: httpx.AsyncClient) -> int:
        body = {"model": "support", "messages": [{"role": "user", "content": LONG}]}
        headers = {"Authorization": f"Bearer {buyer.key}"}
        return (await client.post(f"{buyer.url}/v1/chat/completions", json=body, headers=headers)).status_code

    async with httpx.AsyncClient(timeout=60) as client:
        floods = [asyncio.create_task(flood(client)) for _ in range(8)]
        say: Any = [{"role": "user", "content": "hi"}]
        answer = await stranger.async_openai.chat.completions.create(model="notes", messages=say, max_tokens=1)
        assert answer.choices
        assert await asyncio.gather(*floods) == [400] * 8
