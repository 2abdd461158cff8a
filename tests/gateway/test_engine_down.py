"""An engine that goes away and comes back, under a web process of its own."""

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from config import env, processes
from config.stack import Stack
from inference.client import EngineClient
from tests.gateway.conftest import Customer
from tests.processes import free_port, wait_for

Processes = list[tuple[processes.Command, subprocess.Popen[bytes]]]


@dataclass
class Fragile:
    """A web process, and an engine that can be killed and started again."""

    told: env.Env
    customer: Customer
    engine: subprocess.Popen[bytes] | None = None
    log: Any = field(default=subprocess.DEVNULL)

    def start_engine(self) -> None:
        command = Stack(self.told).engine
        self.engine = command.popen(stdout=self.log, stderr=self.log)
        wait_for(lambda: asyncio.run(self._healthy()), 60, "the engine becoming healthy")

    def kill_engine(self) -> None:
        assert self.engine is not None
        self.engine.kill()
        self.engine.wait()

    async def _healthy(self) -> bool:
        client = EngineClient(self.told.engine_url, self.told.engine_secret)
        try:
            return await client.healthy()
        finally:
            await client.close()


@pytest.fixture(scope="module")
def fragile(
    platform: Any, buyer: Customer, base_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fragile]:
    folder = tmp_path_factory.mktemp("fragile")
    for name in ("store", "cache"):
        (folder / name).mkdir()
    port = free_port()
    told = env.load().model_copy(
        update={
            "home": folder,
            "base_model": str(base_model_folder),
            "device": "cpu",
            "port": port,
            "store_url": f"file://{folder / 'store'}",
            "engine_url": f"unix:{env.load().run / 'fragile.sock'}",
        }
    )
    command = Stack(told).web
    environment = {
        **platform.environment,
        "LORAYARD_ENGINE_URL": told.engine_url,
        "LORAYARD_HOME": platform.environment["LORAYARD_HOME"],
    }
    web = processes.Command(command.name, command.argv, {**command.env, **environment}, cwd=command.cwd)
    with (folder / "web.log").open("wb") as log:
        process = web.popen(stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        made = Fragile(told, Customer(url, buyer.slug, buyer.key), log=log)
        try:
            wait_for(lambda: _answers(url), 60, "the web process answering")
            made.start_engine()
            yield made
        finally:
            processes.end(process, command.stop, 10)
            if made.engine is not None:
                made.kill_engine()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=60).is_success
    except httpx.HTTPError:
        return False


def ask(fragile: Fragile, model: str, **options: Any) -> Any:
    options = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **options}
    return fragile.customer.openai.chat.completions.create(model=model, **options)


def test_a_killed_engine_is_told_everywhere_and_met_again_after_its_restart(fragile: Fragile, base_name: str) -> None:
    stream = ask(fragile, base_name, stream=True, n=16, max_tokens=450, extra_body={"ignore_eos": True})
    next(stream)
    fragile.kill_engine()
    with pytest.raises(openai.APIError) as cut:
        list(stream)
    assert cut.value.code == "engine_down"

    for streamed in (False, True):
        with pytest.raises(openai.InternalServerError) as refused:
            ask(fragile, base_name, stream=streamed)
        assert (refused.value.status_code, refused.value.code) == (503, "engine_down")
        assert int(refused.value.response.headers["retry-after"]) >= 1
    with fragile.customer.openai.responses.connect() as connection:
        connection.send({"type": "response.create", "model": base_name, "input": "x"})
        told: Any = connection.recv()
    assert (told.type, told.status, told.error.code) == ("error", 503, "engine_down")
    assert told.error.headers["retry-after"] == "1"

    fragile.start_engine()
    assert ask(fragile, base_name).choices


def test_of_a_call_whose_engine_was_killed_all_that_had_come_is_counted(
    fragile: Fragile, platform: Any, base_name: str
) -> None:
    name = f"test-{uuid.uuid4().hex}"
    options: Any = {"extra_body": {"ignore_eos": True}, "extra_headers": {"x-request-id": name}, "logprobs": True}
    stream = ask(fragile, base_name, stream=True, n=4, max_tokens=450, **options)
    received = [next(stream) for _ in range(30)]
    fragile.kill_engine()
    with pytest.raises(openai.APIError):
        received.extend(stream)
    tokens = sum(len(choice.logprobs.content) for chunk in received for choice in chunk.choices if choice.logprobs)
    fragile.start_engine()
    query = "SELECT * FROM metering_call WHERE request_id = %s AND outcome <> 'open'"
    wait_for(lambda: platform.rows(query, name), 10, "the call's end")
    (call,) = platform.rows(query, name)
    assert (call["outcome"], call["code"]) == ("failed", "engine_down")
    assert 0 < tokens <= call["completion"] < 4 * 450


def test_an_adapter_whose_files_are_gone_is_503_and_the_base_still_answers(fragile: Fragile, base_name: str) -> None:
    """This engine's store is empty: what the registry knows cannot be loaded from it."""
    with pytest.raises(openai.InternalServerError) as refused:
        ask(fragile, "support")
    assert (refused.value.status_code, refused.value.code) == (503, "adapter_missing")
    assert ask(fragile, base_name).choices
