from collections.abc import Callable
from typing import Any

import openai
import pytest

from config import env
from inference.client import EngineClient
from tests.gateway.conftest import Customer


def test_a_tenant_sees_the_base_model_and_its_own_adapters(buyer: Customer, stranger: Customer, base_name: str) -> None:
    assert {model.id: model.owned_by for model in buyer.openai.models.list()} == {
        base_name: "lorayard",
        "gate-acme/support": "gate-acme",
    }
    assert {model.id for model in stranger.openai.models.list()} == {base_name, "gate-globex/notes"}


@pytest.mark.parametrize("name", ["support", "gate-acme/support", "gate-acme/support@stable", "support@v2"])
def test_a_model_is_found_under_each_of_its_names(buyer: Customer, name: str) -> None:
    model = buyer.openai.models.retrieve(name)
    assert model.id.startswith("gate-acme/support")
    assert (model.object, model.owned_by) == ("model", "gate-acme")


@pytest.mark.parametrize(
    "name", ["gate-globex/notes", "notes", "support@v9", "support@", "nonsense", "a/b/c", "@", "é"]
)
def test_another_tenants_an_unknown_and_an_unready_model_are_the_same_404(buyer: Customer, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as by_name:
        buyer.openai.models.retrieve(name)
    with pytest.raises(openai.NotFoundError) as by_use:
        buyer.chat(name)
    for refused in (by_name.value, by_use.value):
        assert refused.body == {
            "message": f"The model {name!r} does not exist, or you do not have access to it.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }


def test_a_key_for_some_adapters_sees_and_calls_no_others(
    buyer: Customer, issue: Callable[..., tuple[str, str]], base_name: str
) -> None:
    key, _ = issue("inference", adapters=["other"])
    narrow = Customer(buyer.url, buyer.slug, key)
    assert [model.id for model in narrow.openai.models.list()] == [base_name]
    with pytest.raises(openai.NotFoundError):
        narrow.chat("support")


async def test_an_adapter_is_listed_before_and_after_it_is_loaded_on_demand(
    buyer: Customer, stranger: Customer, platform: Any, engine: str
) -> None:
    """Other platforms forget to list what was not loaded by hand."""
    digest = platform.call("GET", "adapters/support/versions/1", buyer.key)["digest"]
    client = EngineClient(engine, env.load().engine_secret)

    async def tier() -> str:
        adapters = {adapter.digest: adapter.tier for adapter in (await client.residency()).adapters}
        return adapters.get(digest, "store")

    async def listed(who: Customer) -> set[str]:
        return {model.id for model in (await who.async_openai.models.list()).data}

    await client.evict(digest)
    before, strangers = await listed(buyer), await listed(stranger)
    assert await tier() == "store", "it is loaded before anybody asked"
    await buyer.async_openai.completions.create(model="support@v1", prompt="hello", max_tokens=1)
    assert await tier() == "device"
    assert "gate-acme/support" in before
    assert await listed(buyer) == before
    assert await listed(stranger) == strangers
    await client.close()
