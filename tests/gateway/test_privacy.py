"""What one tenant must never learn of another, and nobody from the logs."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.gateway.conftest import Customer


def cached(customer: Customer, model: str, say: str) -> int:
    answer = customer.openai.chat.completions.create(
        model=model, messages=[{"role": "user", "content": say}], max_tokens=1
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


def test_a_prefix_is_met_again_by_its_own_tenant_only(buyer: Customer, stranger: Customer, base_name: str) -> None:
    say = "the merger closes on the ninth of June " * 4
    assert cached(buyer, base_name, say) == 0
    assert cached(buyer, base_name, say) > 0
    assert cached(stranger, base_name, say) == 0


def test_a_prefix_of_one_version_is_not_met_by_another(buyer: Customer) -> None:
    say = "what was said to the first version " * 4
    assert cached(buyer, "support@v1", say) == 0
    assert cached(buyer, "support@v2", say) == 0
    assert cached(buyer, "support@v1", say) > 0


async def test_a_request_id_that_others_use_too_crosses_no_answers(buyer: Customer, stranger: Customer) -> None:
    """Other engines know requests by the id that the client chose."""
    calls = [
        (customer, model, f"question {n}")
        for n in range(3)
        for customer, model in ((buyer, "support"), (stranger, "notes"))
    ]
    alone = [customer.chat(model, say, tokens=20) for customer, model, say in calls]

    async def same_id(customer: Customer, model: str, say: str) -> str:
        answer = await customer.async_openai.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": say}],
            max_tokens=20,
            temperature=0,
            extra_headers={"X-Request-ID": "one-for-all"},
        )
        return answer.choices[0].message.content or ""

    assert await asyncio.gather(*(same_id(*call) for call in calls)) == alone


def test_neither_prompts_nor_keys_reach_the_logs(platform: Any, buyer: Customer) -> None:
    environment: Mapping[str, str] = platform.environment
    secret = "xyzzy-plugh"
    buyer.chat("support", secret)
    buyer.request("POST", "/v1/completions", json={"model": secret, "prompt": secret})
    buyer.request("POST", "/v1/completions", json={"model": "support", "prompt": secret * 100})
    buyer.request("POST", "/v1/completions", content=f'{{"prompt": "{secret}'.encode())
    buyer.openai.responses.create(model="support", input=secret, max_output_tokens=1)
    logs = [path.read_text() for path in Path(environment["LORAYARD_HOME"]).rglob("*.log*")]
    assert any("chat.completions" in log for log in logs)
    assert not any(secret in log or buyer.key in log for log in logs)
