"""The engine as its callers meet it: a process, gRPC, real adapters in a real store."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from adapters.errors import BaseModelUnsupported
from adapters.store import Store
from inference import server
from inference.client import (
    AdapterMissing,
    AdapterUnavailable,
    Delta,
    EngineClient,
    EngineDown,
    EngineError,
    Finished,
    Generation,
    Internal,
    InvalidRequest,
    PinsFull,
    PromptTooLong,
    Sampling,
    Started,
)
from inference.models.load import load
from inference.service import WINDOW

SECRET = "the-shared-secret"
GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)


@dataclass
class Served:
    """An engine process, and the digests of three adapters in its store."""

    url: str
    folder: Path
    digests: list[str]
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def served(workshop: Any, tiny_base_model: Path) -> Iterator[Served]:
    base = workshop.base_at(tiny_base_model)
    targets = (["q_proj", "v_proj"], ["gate_proj", "down_proj"], "all-linear")
    with tempfile.TemporaryDirectory(prefix="engine-") as name:
        folder = Path(name)
        store = Store(f"file://{folder}/store")
        digests = [
            store.put(workshop.uploadable(workshop.adapter(base, seed, r=4 * (seed + 1), target_modules=target))).digest
            for seed, target in enumerate(targets)
        ]
        url = f"unix:{folder}/socket"

        def start() -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "inference.server", "--model", str(tiny_base_model), "--listen", url]
            command += ["--store", store.url, "--cache", f"{folder}/cache", "--slots", "2", "--check"]
            with (folder / "log").open("ab") as log:
                environment = os.environ | {"LORAYARD_ENGINE_SECRET": SECRET}
                return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

        engine = Served(url, folder, digests, start, start())
        yield engine
        engine.process.terminate()
        assert engine.process.wait(60) == 0, (folder / "log").read_text()[-3000:]


@pytest.fixture
async def client(served: Served) -> AsyncIterator[EngineClient]:
    client = EngineClient(served.url, SECRET)
    await eventually(client.healthy, 60)
    yield client
    await client.close()


async def eventually(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


def request(prompt: str | list[int], digest: str = "", sampling: Sampling = GREEDY, **options: Any) -> Generation:
    ids = [2 + byte % 200 for byte in prompt.encode()] if isinstance(prompt, str) else prompt
    return Generation("test", ids, sampling, digest, **options)


async def answer(client: EngineClient, asked: Generation) -> tuple[str, Finished]:
    events = [event async for event in client.generate(asked)]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    return "".join(event.text for event in events if isinstance(event, Delta)), events[-1]


async def test_two_tenants_adapters_decode_in_one_step_and_answer_as_alone(
    served: Served, client: EngineClient
) -> None:
    asked = [
        request(f"question {n} of {share}", digest, replace(GREEDY, max_tokens=40), share=share, salt=share)
        for n in range(4)
        for share, digest in (("acme", served.digests[0]), ("globex", served.digests[1]), ("acme", ""))
    ]
    alone = [await answer(client, one) for one in asked]
    together = await asyncio.gather(*(answer(client, one) for one in asked))
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert len({text for text, _ in alone}) == len(asked)
    assert (await client.stats()).steps_by_adapters.get(2, 0) > 0


async def test_more_adapters_than_slots_are_served(served: Served, client: EngineClient) -> None:
    results = await asyncio.gather(*(answer(client, request("x", digest)) for digest in served.digests * 3))
    assert all(finished.completion_tokens == 12 for _, finished in results)


async def test_the_usage_counts_tokens_and_known_prefixes(served: Served, client: EngineClient) -> None:
    asked = request([2 + n % 90 for n in range(40)], salt="usage")
    _, first = await answer(client, asked)
    _, second = await answer(client, asked)
    assert (first.reason, first.prompt_tokens, first.completion_tokens, first.cached_tokens) == ("length", 40, 12, 0)
    assert second.cached_tokens == 32


async def test_a_request_that_waits_for_its_adapter_says_so(served: Served, client: EngineClient) -> None:
    digest = served.digests[0]
    await client.evict(digest)

    async def cold(digest: str) -> bool:
        started, *_ = [event async for event in client.generate(request("x", digest))]
        assert isinstance(started, Started)
        return started.cold

    assert [await cold(digest), await cold(digest), await cold("")] == [True, False, False]


async def test_a_stop_string_ends_the_answer_before_it(client: EngineClient) -> None:
    text, _ = await answer(client, request("abc"))
    stop = text[3:5]
    shorter, finished = await answer(client, request("abc", sampling=replace(GREEDY, stop=(stop,))))
    assert shorter == text[: text.index(stop)]
    assert finished.reason == "stop"
    assert finished.completion_tokens < 12


async def test_a_stop_token_ends_the_answer_and_is_part_of_it_if_asked_for(client: EngineClient) -> None:
    g, h, i = (2 + byte - ord("!") for byte in b"GHI")
    asked = replace(GREEDY, forced=(g, h, i), max_tokens=3, stop_token_ids=(h,), logprobs=0)
    text, finished = await answer(client, request("abc", sampling=asked))
    assert (text, finished.reason, finished.completion_tokens) == ("G", "stop", 2)
    assert (await answer(client, request("abc", sampling=replace(asked, include_stop=True))))[0] == "GH"
    assert (await answer(client, request("abc", sampling=replace(asked, min_tokens=3))))[0].startswith("G")
    events = [event async for event in client.generate(request("abc", sampling=asked))]
    told = [place.chosen for event in events if isinstance(event, Delta) for place in event.logprobs]
    assert [(token.text, token.raw) for token in told] == [("G", b"G"), ("H", b"")]


async def test_a_bad_word_is_never_said(client: EngineClient) -> None:
    text, _ = await answer(client, request("abc"))
    word = next(character for character in text if character.isascii() and character.isprintable())
    other, _ = await answer(client, request("abc", sampling=replace(GREEDY, bad_words=(word,))))
    assert word not in other


async def test_special_tokens_are_shown_if_asked_for(client: EngineClient) -> None:
    hidden = replace(GREEDY, forced=(40, 1, 41), max_tokens=3)
    assert "<|start|>" not in (await answer(client, request("abc", sampling=hidden)))[0]
    assert "<|start|>" in (await answer(client, request("abc", sampling=replace(hidden, show_special=True))))[0]
    stopped, finished = await answer(client, request("abc", sampling=replace(hidden, stop=("<|start|>",))))
    assert (len(stopped), finished.reason, finished.completion_tokens) == (1, "stop", 2)


def test_answers_end_where_the_model_its_tokenizer_or_its_template_says(tiny_base_model: Path, tmp_path: Path) -> None:
    make: Any = AutoTokenizer
    tokenizer = make.from_pretrained(tiny_base_model)
    tokenizer.add_tokens(["<turn>"])
    tokenizer.eos_token = "<|start|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}<turn>\n{% endfor %}"
    model = load(str(tiny_base_model), torch.device("cpu"), torch.float32, 1)
    ends = server.ending(model, tokenizer).stops
    assert ends == {*tokenizer.convert_tokens_to_ids(["<|end|>", "<|start|>", "<turn>"])}


def test_a_tokenizer_that_is_no_tokenizer_json_is_refused(tmp_path: Path) -> None:
    config = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(BaseModelUnsupported, match=r"ByT5Tokenizer.*tokenizer\.json"):
        server.tokenizer_of(str(tmp_path))


async def test_a_seed_repeats_an_answer(client: EngineClient) -> None:
    sampling = replace(GREEDY, temperature=1.2, seed=7)
    texts = [(await answer(client, request("abc", sampling=sampling)))[0] for _ in range(2)]
    other, _ = await answer(client, request("abc", sampling=replace(sampling, seed=8)))
    assert texts[0] == texts[1] != other


async def test_logprobs_come_with_their_tokens(client: EngineClient) -> None:
    events = [e async for e in client.generate(request("abc", sampling=replace(GREEDY, logprobs=3)))]
    deltas = [event for event in events if isinstance(event, Delta) and event.tokens]
    assert len(deltas) == 12
    for delta in deltas:
        (position,) = delta.logprobs
        assert position.chosen.token == delta.tokens[0] == position.top[0].token
        assert 0 >= position.top[0].logprob >= position.top[1].logprob >= position.top[2].logprob


async def test_a_client_that_goes_away_frees_its_sequence(client: EngineClient) -> None:
    stream = client.generate(request("abc", sampling=replace(GREEDY, max_tokens=400)))
    async for event in stream:
        if isinstance(event, Delta):
            break
    await stream.aclose()

    async def idle() -> bool:
        gauges = (await client.stats()).gauges
        return gauges["running"] == gauges["waiting"] == 0 and gauges["blocks_free"] == gauges["blocks"]

    await eventually(idle, 2)


async def generated(client: EngineClient) -> int:
    return int((await client.stats()).counters["generated_tokens_total"])


async def test_who_stands_still_is_a_window_behind_and_goes_on_with_the_same_text(client: EngineClient) -> None:
    asked = request("abc", sampling=replace(GREEDY, max_tokens=400))
    text, _ = await answer(client, asked)
    before = await generated(client)
    stream = client.generate(asked)
    await anext(stream)

    async def held() -> bool:
        return (await client.stats()).gauges["held"] == 1

    await eventually(held)
    assert (await client.stats()).gauges["running"] == 0
    assert await generated(client) - before == WINDOW
    rest = [event async for event in stream]
    await stream.aclose()
    assert "".join(event.text for event in rest if isinstance(event, Delta)) == text
    assert isinstance(rest[-1], Finished)
    assert rest[-1].completion_tokens == stream.made == 400


@pytest.mark.parametrize("read", [0, 1, 30, 200])
async def test_what_was_made_for_a_client_that_leaves_is_known_to_the_token(client: EngineClient, read: int) -> None:
    before = await generated(client)
    stream = client.generate(request("abc", sampling=replace(GREEDY, max_tokens=400)))
    for _ in range(1 + read):
        await anext(stream)
    await stream.aclose()
    assert read <= stream.made < 400
    assert stream.made == await generated(client) - before
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_reader_that_is_cancelled_while_it_waits_may_still_close(client: EngineClient) -> None:
    before = await generated(client)
    stream = client.generate(request("abc", sampling=replace(GREEDY, max_tokens=400)))
    for _ in range(2):
        await anext(stream)
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await stream.aclose()
    assert stream.made == await generated(client) - before


async def test_what_cannot_be_read_ends_the_answer_and_its_sequence(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(message: Any) -> Any:
        raise ValueError(message.WhichOneof("event"))

    monkeypatch.setattr("inference.client._event", broken)
    async with asyncio.timeout(30), contextlib.aclosing(client.generate(request("x"))) as events:
        with pytest.raises(Internal, match="could not be read"):
            await anext(events)

    async def gone() -> bool:
        gauges = (await client.stats()).gauges
        return not gauges["running"] + gauges["waiting"] + gauges["held"]

    await eventually(gone)


async def test_an_adapter_is_brought_evicted_and_named(served: Served, client: EngineClient) -> None:
    digest = served.digests[0]
    state = await client.preload(digest)
    assert (state.state, state.running, state.tier) == ("resident", 0, "device")
    assert state.bytes == state.host_bytes > 0
    assert state.disk_bytes > 0
    residency = await client.residency()
    assert digest in {adapter.digest for adapter in residency.adapters}
    assert [tier.name for tier in residency.tiers] == ["device", "host", "disk"]
    assert all(state.bytes <= tier.bytes <= tier.limit for tier in residency.tiers)
    gone = await client.evict(digest)
    assert (gone.state, gone.tier, gone.host_bytes, gone.disk_bytes) == ("absent", "store", 0, 0)
    assert digest not in {adapter.digest for adapter in (await client.residency()).adapters}


async def test_what_was_evicted_from_the_device_comes_back_from_the_host(served: Served, client: EngineClient) -> None:
    for digest in served.digests * 2:
        await answer(client, request("x", digest))
    before = {tier.name: tier for tier in (await client.stats()).tiers}
    for digest in served.digests:
        await answer(client, request("x", digest))
    after = {tier.name: tier for tier in (await client.stats()).tiers}
    assert after["device"].loads > before["device"].loads
    assert after["host"].hits > before["host"].hits
    assert after["disk"].hits + after["disk"].misses == before["disk"].hits + before["disk"].misses


async def test_a_pinned_adapter_makes_no_room_until_it_is_unpinned(served: Served, client: EngineClient) -> None:
    first, second, third = served.digests
    assert (await client.preload(first, pin=True)).pinned
    with pytest.raises(PinsFull):
        await client.preload(second, pin=True)
    for digest in (second, third, second):
        await answer(client, request("x", digest))
    states = {adapter.digest: adapter for adapter in (await client.residency()).adapters}
    assert (states[first].state, states[first].pinned, states[first].tier) == ("resident", True, "device")
    assert not (await client.unpin(first)).pinned
    assert (await client.evict(first)).tier == "store"


@pytest.mark.parametrize(
    ("asked", "error", "param"),
    [
        (request([]), InvalidRequest, "prompt"),
        (request([100000]), InvalidRequest, "prompt"),
        (request("x" * 600), PromptTooLong, "prompt"),
        (request("x", sampling=replace(GREEDY, max_tokens=0)), InvalidRequest, "max_tokens"),
        (request("x", sampling=replace(GREEDY, logprobs=21)), InvalidRequest, "logprobs"),
        (request("x", "sha256:" + "0" * 64), AdapterMissing, None),
        (request("x", "../../etc/passwd"), AdapterMissing, None),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    client: EngineClient, asked: Generation, error: type[EngineError], param: str | None
) -> None:
    with pytest.raises(error) as caught:
        await answer(client, asked)
    assert caught.value.param == param


async def test_a_damaged_artifact_fails_its_own_requests_only(
    served: Served, client: EngineClient, workshop: Any, tiny_base_model: Path
) -> None:
    base = workshop.base_at(tiny_base_model)
    adapter = workshop.uploadable(workshop.adapter(base, 77, r=3, target_modules=["o_proj"]))
    digest = Store(f"file://{served.folder}/store").put(adapter).digest
    for blob in (served.folder / "store" / "blobs").iterdir():
        if blob.stat().st_size == (adapter / "adapter_model.safetensors").stat().st_size:
            blob.write_bytes(blob.read_bytes()[:-4] + b"evil")
    fine = asyncio.create_task(answer(client, request("fine", served.digests[1])))
    with pytest.raises(AdapterUnavailable):
        await answer(client, request("x", digest))
    assert (await fine)[1].completion_tokens == 12


@pytest.mark.parametrize("secret", ["", "the-shared-secre", "another"])
async def test_a_stranger_without_the_secret_gets_nothing(served: Served, client: EngineClient, secret: str) -> None:
    stranger = EngineClient(served.url, secret)
    assert not await stranger.healthy()
    for call in (stranger.stats, stranger.residency, lambda: answer(stranger, request("x"))):
        with pytest.raises(EngineError):
            await call()
    await stranger.close()


async def test_a_killed_engine_is_down_and_serves_again_after_its_restart(served: Served, client: EngineClient) -> None:
    served.process.send_signal(signal.SIGKILL)
    served.process.wait()
    with pytest.raises(EngineDown) as caught:
        await answer(client, request("x"))
    assert caught.value.retry_after
    served.process = served.start()
    await eventually(client.healthy, 60)
    assert (await answer(client, request("x", served.digests[2])))[1].completion_tokens == 12


def starting(folder: Path, model: Path, /, **changes: str) -> list[str]:
    """What an engine is started with."""
    options = {"model": str(model), "listen": f"unix:{folder}/s", "store": f"file://{folder}", "cache": str(folder)}
    return [text for name, value in (options | changes).items() for text in (f"--{name.replace('_', '-')}", value)]


def test_an_engine_that_cannot_start_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inference.server", *starting(tmp_path, Path("/nowhere/at/all"))]
    environment = os.environ | {"LORAYARD_ENGINE_SECRET": SECRET}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode != 0
    assert "/nowhere/at/all" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"dtype": "int3"}, "int3"),
        ({"max_rows": "600"}, "--max-batch-tokens"),
    ],
)
def test_what_makes_no_sense_to_an_engine_is_named(
    tiny_base_model: Path,
    tmp_path: Path,
    changes: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(server, "_few_heaps", lambda: None)  # it is this process that would have few
    monkeypatch.setattr(sys, "argv", ["server", *starting(tmp_path, tiny_base_model, **changes)])
    monkeypatch.setenv("LORAYARD_ENGINE_SECRET", SECRET)
    with pytest.raises(SystemExit) as ended:
        server.main()
    told = ended.value.code
    line = told if isinstance(told, str) else capsys.readouterr().err.strip().splitlines()[-1]
    assert said in line
    assert "\n" not in line
