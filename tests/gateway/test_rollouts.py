"""A rollout under real traffic: real web, worker, beat and engine, called through the `openai` package."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config import env
from inference.client import EngineClient
from tests.gateway.conftest import Customer
from tests.processes import wait_for

URL = "/api/v1/adapters/desk/rollouts"
HOLD = {"min_seconds": 3600, "min_samples": 0}


@pytest.fixture(scope="module")
def owner(
    platform: Any,
    upload: Callable[[str, str, Path], int],
    make_adapter: Callable[..., Path],
    base_model_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Customer:
    """gate-rollouts, with `desk` in versions 1 and 2, which answer differently, and a third that can be spoilt."""
    _, key = platform.tenant("gate-rollouts")
    for seed in (21, 22, 23):
        folder = tmp_path_factory.mktemp("desk") / str(seed)
        upload(key, "desk", make_adapter(folder, base_model_folder, rank=4, seed=seed, scale=8.0))
    return Customer(platform.url, "gate-rollouts", key)


@pytest.fixture
def begin(owner: Customer) -> Iterator[Callable[..., str]]:
    """begin(50): the id of a rollout to v2 that serves half of the units and stays there. Aborted at the end."""
    made: list[str] = []

    def begun(weight: float = 50, version: int = 2, **step: Any) -> str:
        steps = [{"weight": weight, **HOLD, **step}]
        if step.get("shadow"):
            steps.append({"weight": 100, **HOLD})
        body = {"version": version, "steps": steps, "override": True}
        answer = owner.request("POST", URL, json=body)
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["id"])
        wanted = "shadowing" if step.get("shadow") else "progressing"
        wait_for(lambda: shown(owner, made[-1])["state"] == wanted, 60, f"a rollout {wanted}")
        return made[-1]

    yield begun
    for rollout in made:
        owner.request("POST", f"{URL}/{rollout}/abort")
        wait_for(lambda rollout=rollout: shown(owner, rollout)["state"] == "rolled_back", 60, "the end")  # type: ignore[misc]


def shown(owner: Customer, rollout: str) -> dict[str, Any]:
    return dict(owner.request("GET", f"{URL}/{rollout}").json())


def version(owner: Customer, user: str = "", say: Any = "hello", **headers: str) -> str:
    """What the header says served this user."""
    messages: Any = say if isinstance(say, list) else [{"role": "user", "content": say}]
    raw = owner.openai.chat.completions.with_raw_response.create(
        model="desk", messages=messages, max_tokens=2, user=user or "", extra_headers=headers
    )
    return str(raw.headers["x-adapter-version"])


def test_half_of_the_users_meet_the_canary_on_every_endpoint_alike(owner: Customer, begin: Callable[..., str]) -> None:
    begin(50)
    users = [f"user-{number}" for number in range(16)]
    by_chat = {user: version(owner, user) for user in users}
    assert set(by_chat.values()) == {"v1", "v2"}
    for user in users:
        text = owner.openai.completions.with_raw_response.create(model="desk", prompt="hi", max_tokens=1, user=user)
        told = owner.openai.responses.with_raw_response.create(
            model="desk", input="hi", max_output_tokens=1, extra_body={"user": user}
        )
        stream = owner.openai.chat.completions.with_raw_response.create(
            model="desk", messages=[{"role": "user", "content": "x"}], max_tokens=1, user=user, stream=True
        )
        assert {raw.headers["x-adapter-version"] for raw in (text, told, stream)} == {by_chat[user]}


def test_a_conversation_meets_one_version_in_all_its_turns(owner: Customer, begin: Callable[..., str]) -> None:
    begin(50)
    met = Counter[str]()
    for number in range(12):
        turns: list[Any] = [{"role": "user", "content": f"question {number}"}]
        first = version(owner, say=turns)
        turns += [{"role": "assistant", "content": "so"}, {"role": "user", "content": f"and then {number}?"}]
        assert version(owner, say=turns) == first
        met[first] += 1
    assert len(met) == 2


def test_a_websocket_conversation_stays_too_and_goes_on_over_another(
    owner: Customer, begin: Callable[..., str]
) -> None:
    begin(50)
    greedy: Any = {"model": "desk", "max_output_tokens": 8, "temperature": 0}
    for number in range(3):
        say = f"talk {number}"
        serving = version(owner, say=say)
        pinned = owner.openai.responses.create(input=say, **{**greedy, "model": f"desk@{serving}"}).output_text
        for _ in range(2):
            with owner.openai.responses.connect() as connection:
                event: Any = {"type": "response.create", "input": say, **greedy}
                connection.send(event)
                events: list[Any] = []
                while not events or not events[-1].type.startswith(("response.completed", "response.incomplete")):
                    events.append(connection.recv())
            assert events[-1].response.output[0].content[0].text == pinned


def test_an_abort_is_honoured_within_a_second(owner: Customer, begin: Callable[..., str]) -> None:
    rollout = begin(100)
    assert version(owner) == "v2"
    owner.request("POST", f"{URL}/{rollout}/abort")
    assert version(owner) == "v1"


def test_a_stream_that_began_on_the_canary_ends_on_it(owner: Customer, begin: Callable[..., str]) -> None:
    rollout = begin(100)
    options: Any = {"messages": [{"role": "user", "content": "long"}], "max_tokens": 200, "temperature": 0}
    options |= {"extra_body": {"ignore_eos": True}}
    whole = owner.openai.chat.completions.create(model="desk@v2", **options).choices[0].message.content
    stream = owner.openai.chat.completions.create(model="desk", stream=True, **options)
    pieces = [next(stream)]
    owner.request("POST", f"{URL}/{rollout}/abort")
    pieces += list(stream)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole


def test_only_a_key_with_the_scope_chooses_its_arm(
    platform: Any, owner: Customer, stranger: Customer, begin: Callable[..., str]
) -> None:
    rollout = begin(50)
    for arm, serving in (("canary", "v2"), ("stable", "v1")):
        assert {version(owner, str(n), **{"x-rollout-arm": arm}) for n in range(5)} == {serving}
    bad = owner.request("POST", "/v1/chat/completions", json=chat(), headers={"x-rollout-arm": "best"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "x-rollout-arm")
    limited = platform.call("POST", "keys", owner.key, name="limited", scopes=["inference"])["key"]
    other = Customer(owner.url, owner.slug, limited)
    refused = other.request("POST", "/v1/chat/completions", json=chat(), headers={"x-rollout-arm": "canary"})
    assert refused.status_code == 403
    time.sleep(1)
    assert shown(owner, rollout)["arms"] == {}
    assert stranger.request("POST", "/v1/chat/completions", json=chat()).status_code == 404


def test_every_request_leaves_a_sample_even_one_whose_client_left(owner: Customer, begin: Callable[..., str]) -> None:
    rollout = begin(50)
    for number in range(10):
        version(owner, str(number))
    stream = owner.openai.chat.completions.create(
        model="desk", messages=[{"role": "user", "content": "x"}], max_tokens=400, stream=True, user="0",
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    next(stream)
    stream.close()
    wait_for(lambda: sum(arm["requests"] for arm in shown(owner, rollout)["arms"].values()) == 11, 30, "11 samples")
    arms = shown(owner, rollout)["arms"].values()
    assert sum(arm["abandoned"] for arm in arms) == 1
    assert all(arm["mean_first_token"] > 0 for arm in arms)


def test_a_shadow_gets_copies_and_nobody_its_answers(platform: Any, owner: Customer, begin: Callable[..., str]) -> None:
    rollout = begin(100, shadow=True)
    assert {version(owner, str(number)) for number in range(6)} == {"v1"}

    def copied() -> bool:
        arms = shown(owner, rollout)["arms"]
        return bool(arms.get("stable", {}).get("requests") == 6 and arms.get("canary", {}).get("requests", 0) >= 1)

    wait_for(copied, 60, "copies at the canary")
    canary = shown(owner, rollout)["arms"]["canary"]
    assert canary["requests"] <= 6
    assert canary["mean_first_token"] is None
    metered = "SELECT version, prompt, completion, outcome FROM metering_call WHERE purpose = 'shadow'"
    wait_for(lambda: len(platform.rows(metered)) >= canary["requests"], 60, "the copies' use in the ledger")
    for call in platform.rows(metered):
        assert (call["version"], call["completion"], call["outcome"], call["prompt"] > 0) == (2, 2, "finished", True)


def test_thumbs_are_taken_for_any_answer_alike(owner: Customer, stranger: Customer, begin: Callable[..., str]) -> None:
    begin(50)
    answer = owner.openai.chat.completions.create(model="desk", messages=chat()["messages"], max_tokens=2)
    told = {(who.slug, id): thumb(who, id) for who in (owner, stranger) for id in (answer.id, "resp_" + "0" * 32)}
    assert {status for status, _ in told.values()} == {200}
    assert thumb(owner, "' OR 1=1")[0] == 400
    assert thumb(owner, answer.id, "sideways")[0] == 400


def test_a_canary_that_cannot_be_loaded_trips_and_fails_nobody(owner: Customer, begin: Callable[..., str]) -> None:
    rollout = begin(100, version=3)
    assert version(owner) == "v3"
    digest = owner.request("GET", "/api/v1/adapters/desk/versions/3").json()["digest"]
    lose(digest)
    assert [version(owner, str(number)) for number in range(5)] == ["v1"] * 5
    wait_for(lambda: shown(owner, rollout)["cause"] == "tripwire", 30, "the tripwire")
    assert shown(owner, rollout)["reasons"] == ["5 engine errors in a row"]


def chat() -> dict[str, Any]:
    return {"model": "desk", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def thumb(who: Customer, response: str, way: str = "down") -> tuple[int, dict[str, Any]]:
    answer = who.request("POST", "/v1/feedback", json={"response_id": response, "thumb": way})
    return answer.status_code, answer.json()


def lose(digest: str) -> None:
    """Takes a version's files out of the store, and the version off the engine."""
    told = env.load()
    for path in Path(told.store_url.removeprefix("file://")).rglob(f"*{digest.removeprefix('sha256:')}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    async def evict() -> None:
        client = EngineClient(told.engine_url, told.engine_secret)
        await client.evict(digest)
        await client.close()

    asyncio.run(evict())
