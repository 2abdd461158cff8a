"""Every route under /v1/, found by walking the gateway's URLs, tried by a stranger with an adapter of the same name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.urls import urlpatterns
from tests.gateway.conftest import Customer
from tests.processes import wait_for

SAY: Any = [{"role": "user", "content": "hello"}]
BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "chat.completions": lambda model: {"model": model, "messages": SAY, "max_tokens": 1},
    "completions": lambda model: {"model": model, "prompt": "hello", "max_tokens": 1},
    "responses": lambda model: {"model": model, "input": "hello", "max_output_tokens": 1},
}
READ = {"models", "model"}
SAYS_THE_SAME_OF_ALL = {"feedback"}


@pytest.fixture(scope="module")
def namesake(
    platform: Any,
    buyer: Customer,
    upload: Callable[[str, str, Path], int],
    make_adapter: Callable[..., Path],
    base_model_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Customer:
    """gate-initech, whose adapter `support` has a version 1 as well."""
    _, key = platform.tenant("gate-initech")
    folder = tmp_path_factory.mktemp("adapters") / "namesake"
    upload(key, "support", make_adapter(folder, base_model_folder, rank=4, seed=9, scale=8.0))
    return Customer(platform.url, "gate-initech", key)


def test_every_route_is_tried_here() -> None:
    missing = {pattern.name for pattern in urlpatterns} - BODIES.keys() - READ - SAYS_THE_SAME_OF_ALL
    assert not missing, f"say in this file how a stranger would try {missing}"


def test_no_route_serves_or_shows_a_strangers_adapter(buyer: Customer, namesake: Customer) -> None:
    """By any name: another tenant's version is as unknown as one that never was."""
    digest = buyer.request("GET", "/api/v1/adapters/support/versions/1").json()["digest"]
    ours = namesake.request("GET", "/api/v1/adapters/support/versions/1").json()["digest"]
    assert digest != ours
    names = [f"{buyer.slug}/support{ref}" for ref in ("", "@v1", "@stable", f"@{digest}")]
    names += [f"support@{digest}", f"{namesake.slug}/support@{digest}", "support@v2"]
    for name in names:
        for route, body in BODIES.items():
            answer = namesake.request("POST", f"/v1/{route.replace('.', '/')}", json=body(name))
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), (route, name)
        assert namesake.request("GET", f"/v1/models/{name}").status_code == 404, name
    listed = namesake.request("GET", "/v1/models").text
    assert f"{namesake.slug}/support" in listed
    assert not any(secret in listed for secret in (buyer.slug, digest))
    assert namesake.openai.chat.completions.create(model="support", messages=SAY, max_tokens=1)


def test_a_request_makes_known_to_its_tenant_where_its_version_is(namesake: Customer) -> None:
    assert namesake.openai.chat.completions.create(model="support", messages=SAY, max_tokens=1)
    place = "/api/v1/adapters/support/versions/1/residency"
    wait_for(lambda: namesake.request("GET", place).json()["state"] == "resident", 10, "the use being noted")


def test_a_thumb_for_a_strangers_answer_is_answered_like_one_for_none(buyer: Customer, namesake: Customer) -> None:
    answer = buyer.openai.chat.completions.create(model="support", messages=SAY, max_tokens=1)
    told = []
    for response in (answer.id, "chatcmpl-" + "0" * 32):
        thumb = namesake.request("POST", "/v1/feedback", json={"response_id": response, "thumb": "down"})
        told.append((thumb.status_code, {**thumb.json(), "response_id": ""}))
    assert told[0] == told[1]
    assert told[0][0] == 200
