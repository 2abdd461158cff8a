"""A rollout under real traffic: real web, worker, beat and engine, called through the `openai` package."""

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg
import pytest

from adapters.store import Store
from config import env, processes
from config.stack import Stack
from inference.client import EngineClient
from tests.gateway.conftest import Customer
from tests.processes import environment, free_port, wait_for

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
    """gate-rollouts, with `desk` in four versions: 1 and 2 answer differently, 3 can be spoilt, 4 is made of numbers
    so large that none of its answers is one."""
    _, key = platform.tenant("gate-rollouts")
    mild: dict[str, Any] = {"targets": ("q_proj", "v_proj"), "scale": 8.0}
    wild = {"targets": ("gate_proj", "up_proj"), "scale": 1e30}  # whose products are infinite
    folders = {seed: tmp_path_factory.mktemp("desk") / str(seed) for seed in (21, 22, 23, 24)}
    for seed, folder in folders.items():
        make_adapter(folder, base_model_folder, rank=4, seed=seed, **(wild if seed == 24 else mild))
    for seed in (21, 22, 23):
        upload(key, "desk", folders[seed])
    put_in(platform, "gate-rollouts", folders[24])
    return Customer(platform.url, "gate-rollouts", key)


def put_in(platform: Any, tenant: str, folder: Path) -> None:
    """Make a ready `desk` v4 of files that no validation has tried, as of a release that tried none."""
    digest = Store(platform.environment["LORAYARD_STORE_URL"]).put(folder).digest
    kept = ", ".join(("findings", "summary", "size", "attempts", "signature", "uploader", "notes", "metrics"))
    insert = f"""
        INSERT INTO registry_version (id, adapter_id, number, digest, state, {kept}, created_at, changed_at)
        SELECT gen_random_uuid(), adapter_id, 4, %s, state, {kept}, now(), now() FROM registry_version
        WHERE number = 3 AND adapter_id = (
            SELECT a.id FROM registry_adapter a JOIN tenants_tenant t ON t.id = a.tenant_id
            WHERE a.name = 'desk' AND t.slug = %s
        )
    """
    with psycopg.connect(platform.environment["DATABASE_URL"]) as database:
        database.execute(insert.encode(), [digest, tenant])


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


@pytest.fixture(scope="module")
def elsewhere(platform: Any, owner: Customer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Customer]:
    """The owner at a second web process of the same platform, which has only just begun."""
    told = {**platform.environment, "LORAYARD_PORT": str(free_port())}
    home, port = Path(told["LORAYARD_HOME"]), int(told["LORAYARD_PORT"])
    web = Stack(env.load().model_copy(update={"home": home, "port": port})).web
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/readyz", timeout=10).is_success
        return False

    with (tmp_path_factory.mktemp("web") / "log").open("wb") as log:
        process = replace(web, env={**environment(**told), **web.env}).popen(stdout=log, stderr=log)
    try:
        wait_for(ready, 60, "a second web process")
        yield Customer(url, owner.slug, owner.key)
    finally:
        processes.end(process, web.stop, 10)


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


def test_a_conversation_over_a_websocket_stays_on_its_version_in_every_turn(
    owner: Customer, begin: Callable[..., str]
) -> None:
    begin(50)
    met = {say: version(owner, say=say) for say in (f"talk {number}" for number in range(16))}
    firsts = {of: next(say for say, serving in met.items() if serving == of) for of in ("v1", "v2")}
    greedy: Any = {"max_output_tokens": 8, "temperature": 0}
    for serving, other in (("v1", "v2"), ("v2", "v1")):
        turns: list[Any] = []
        with owner.openai.responses.connect() as connection:
            previous = None
            for say in (firsts[serving], firsts[other], firsts[other]):  # by itself it would go to the other version
                turns.append({"role": "user", "content": say})
                pinned = owner.openai.responses.create(model=f"desk@{serving}", input=turns, **greedy).output_text
                event = {"type": "response.create", "model": "desk", "input": say, **greedy}
                response = answered(connection, {**event, **({"previous_response_id": previous} if previous else {})})
                assert response.output[0].content[0].text == pinned
                turns.append({"role": "assistant", "content": pinned})
                previous = response.id


def test_an_abort_is_honoured_within_a_second(owner: Customer, begin: Callable[..., str]) -> None:
    rollout = begin(100)
    assert version(owner) == "v2"
    owner.request("POST", f"{URL}/{rollout}/abort")
    assert version(owner) == "v1"


def test_every_web_process_says_the_same_and_honours_an_abort_at_once(
    owner: Customer, begin: Callable[..., str], request: pytest.FixtureRequest
) -> None:
    rollout = begin(50)
    users = [f"user-{number}" for number in range(12)]
    before = [version(owner, user) for user in users]
    second = request.getfixturevalue("elsewhere")  # begun only now, it knows nothing of whom the first one served
    assert set(before) == {"v1", "v2"}
    assert [version(second, user) for user in users] == before
    assert second.request("POST", f"{URL}/{rollout}/abort").status_code == 200
    for web in (owner, second):
        assert {version(web, user) for user in users[:6]} == {"v1"}


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
    version(owner)
    kept = "SELECT 1 FROM rollouts_sample WHERE rollout_id = %s"
    wait_for(lambda: rows(platform, kept, rollout), 10, "a sample of the one request that was not a tester's")
    assert len(rows(platform, kept, rollout)) == 1
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


def test_thumbs_are_taken_for_any_answer_alike_and_meet_the_owners_own(
    platform: Any, owner: Customer, stranger: Customer, begin: Callable[..., str]
) -> None:
    rollout = begin(50)
    say: Any = chat()["messages"]
    stream = list(owner.openai.chat.completions.create(model="desk", messages=say, max_tokens=2, stream=True))
    event = {"type": "response.create", "model": "desk", "input": "x", "max_output_tokens": 2}
    with owner.openai.responses.connect() as connection:
        spoken = answered(connection, event)
    ids = [
        owner.openai.chat.completions.create(model="desk", messages=say, max_tokens=2).id,
        stream[0].id,
        owner.openai.completions.create(model="desk", prompt="hello", max_tokens=2).id,
        owner.openai.responses.create(model="desk", input="hello", max_output_tokens=2).id,
        spoken.id,
    ]
    told = {thumb(who, id) for who in (owner, stranger) for id in (*ids, "resp_" + "0" * 32)}
    assert told == {200}
    assert thumb(owner, "' OR 1=1") == 400
    assert thumb(owner, ids[0], "sideways") == 400
    thumbed = (
        "SELECT s.response FROM rollouts_sample s JOIN rollouts_feedback f ON f.response = s.response"
        " JOIN tenants_tenant t ON t.id = f.tenant_id AND t.slug = %s WHERE s.rollout_id = %s ORDER BY s.response"
    )
    met = [(id,) for id in sorted(ids)]
    wait_for(lambda: rows(platform, thumbed, owner.slug, rollout) == met, 10, "each thumb meeting its answer's sample")


def test_a_canary_whose_answers_are_no_numbers_trips_and_fails_nobody(
    owner: Customer, begin: Callable[..., str]
) -> None:
    rollout = begin(100, version=4)
    say: Any = {"model": "desk", "messages": chat()["messages"], "max_tokens": 3, "temperature": 0}
    create = owner.openai.chat.completions.with_raw_response.create
    streamed, several = create(stream=True, **say), create(n=3, **say)
    spoken = owner.openai.responses.with_raw_response.create(model="desk", input="hi", max_output_tokens=2)
    assert [raw.headers["x-adapter-version"] for raw in (streamed, several, spoken)] == ["v1"] * 3
    wait_for(lambda: shown(owner, rollout)["cause"] == "tripwire", 30, "the tripwire")
    assert shown(owner, rollout)["reasons"] == ["The canary's logits were not finite"]
    pinned = owner.chat("desk@v1", tokens=3)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed.parse()) == pinned
    assert {choice.message.content for choice in several.parse().choices} == {pinned}


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


def rows(platform: Any, sql: LiteralString, *values: str) -> list[tuple[Any, ...]]:
    """What the platform's database holds."""
    with psycopg.connect(platform.environment["DATABASE_URL"]) as database:
        return database.execute(sql, values).fetchall()


def thumb(who: Customer, response: str, way: str = "down") -> int:
    return who.request("POST", "/v1/feedback", json={"response_id": response, "thumb": way}).status_code


def answered(connection: Any, event: Any) -> Any:
    """The whole response to what is sent over a WebSocket."""
    connection.send(event)
    while not (told := connection.recv()).type.startswith(("response.completed", "response.incomplete")):
        assert told.type != "error", told
    return told.response


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
