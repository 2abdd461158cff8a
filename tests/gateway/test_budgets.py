"""Budgets where applications meet them: through the `openai` package, on every endpoint, many at once."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import RateLimitError

from tests.gateway.conftest import Customer
from tests.processes import wait_for

HELLO: Any = [{"role": "user", "content": "hello"}]
KNOWN_WITHIN = 0.7  # seconds that a web process may go on with what it remembers of a key


@pytest.fixture(scope="module")
def spender(platform: Any) -> Customer:
    """gate-budgets, who has no adapter."""
    _, key = platform.tenant("gate-budgets")
    return Customer(platform.url, "gate-budgets", key)


@pytest.fixture
def limit(platform: Any, spender: Customer) -> Iterator[Callable[..., str]]:
    """limit(100): the path of a daily budget of so many tokens more than were used, which holds when this returns."""
    made: list[str] = []

    def limited(tokens: int, period: str = "day") -> str:
        budget = platform.call("POST", "budgets", spender.key, period=period, tokens=tokens)
        made.append(f"budgets/{budget['id']}")
        time.sleep(KNOWN_WITHIN)
        return made[-1]

    yield limited
    for path in made:
        spender.request("DELETE", f"/api/v1/{path}")


def used(platform: Any, spender: Customer, path: str) -> tuple[int, int]:
    budget = platform.call("GET", path, spender.key)
    return budget["used"], budget["reserved"]


def settled(platform: Any, spender: Customer, path: str) -> int:
    wait_for(lambda: used(platform, spender, path)[1] == 0, 10, "every request's settlement")
    return used(platform, spender, path)[0]


def test_what_a_request_used_is_settled_and_what_no_longer_fits_refused(
    platform: Any, spender: Customer, base_name: str, limit: Callable[..., str]
) -> None:
    path = limit(200)
    asked: Any = {"model": base_name, "messages": HELLO, "extra_body": {"ignore_eos": True}}
    answer = spender.openai.chat.completions.create(**asked, n=3, max_tokens=4)
    assert answer.usage is not None
    assert settled(platform, spender, path) == answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    with pytest.raises(RateLimitError) as refused:
        spender.openai.chat.completions.create(**asked, max_tokens=190)
    told: Any = refused.value.body
    assert (told["type"], told["code"], told["param"]) == ("insufficient_quota", "insufficient_quota", None)
    assert f"{200 - answer.usage.total_tokens} of 200 left" in told["message"]
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 24 * 60 * 60
    assert refused.value.response.headers["x-should-retry"] == "false"
    spender.openai.chat.completions.create(**asked, max_tokens=1)


def test_no_way_in_leads_past_a_budget(
    platform: Any, spender: Customer, base_name: str, limit: Callable[..., str]
) -> None:
    path = limit(10)
    client = spender.openai
    ways: list[Callable[[], Any]] = [
        lambda: client.chat.completions.create(model=base_name, messages=HELLO),
        lambda: client.chat.completions.create(model=base_name, messages=HELLO, stream=True, max_tokens=50),
        lambda: client.completions.create(model=base_name, prompt="a", n=4, max_tokens=3),
        lambda: client.completions.create(model=base_name, prompt=["a", "b", "c"], max_tokens=3),
        lambda: client.responses.create(model=base_name, input="a"),
        lambda: client.responses.create(model=base_name, input="a", stream=True, max_output_tokens=11),
    ]
    for way in ways:
        with pytest.raises(RateLimitError, match="tokens"):
            way()
    with client.responses.connect() as socket:
        socket.response.create(model=base_name, input="a", max_output_tokens=10)
        event: Any = socket.recv()
    assert (event.type, event.status, event.error.code) == ("error", 429, "insufficient_quota")
    assert used(platform, spender, path) == (0, 0)


async def test_many_at_once_never_use_more_than_the_budget_and_leave_nothing_taken(
    platform: Any, spender: Customer, base_name: str, limit: Callable[..., str]
) -> None:
    """Some stay to the end, some leave: none is forgotten."""
    path = await asyncio.to_thread(limit, 300)

    async def ask(number: int) -> int:
        try:
            stream: Any = await spender.async_openai.completions.create(
                model=base_name, prompt="abcd", max_tokens=36, stream=True, extra_body={"ignore_eos": True}
            )
        except RateLimitError:
            return 0
        if number % 3:
            async for _ in stream:
                pass
        await stream.close()
        return 1

    admitted = sum(await asyncio.gather(*(ask(number) for number in range(50))))
    assert 300 // 40 <= admitted < 50
    assert 0 < await asyncio.to_thread(settled, platform, spender, path) <= 300


def test_a_stranger_goes_on(stranger: Customer, base_name: str, limit: Callable[..., str]) -> None:
    limit(1)
    assert stranger.openai.completions.create(model=base_name, prompt="a", max_tokens=1).usage is not None
