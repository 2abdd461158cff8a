"""An engine that breaks says so to everybody and ends, so that whoever started it starts another; and what a stream
counts is what it told."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from grpc_health.v1 import health_pb2
from transformers import AutoTokenizer

from adapters.store import Store
from inference import engine_pb2 as pb
from inference.client import EngineClient, Event, Generation, Internal, Sampling
from inference.models.load import load
from inference.server import parse
from inference.service import Service

SECRET = "the-shared-secret"
LONG = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
BUGGY = """
from inference import server
from inference.engine.scheduler import Scheduler

plan = Scheduler.plan

def breaks(self):
    assert all(sequence.share != "unlucky" for sequence in self.live), "a bug"
    return plan(self)

Scheduler.plan = breaks
server.main()
"""


def options(model: Path, folder: Path) -> list[str]:
    told = {"--model": model, "--listen": f"unix:{folder}/s", "--store": f"file://{folder}/store", "--slots": 2}
    told |= {"--cache": folder / "cache", "--kv-tokens": 2048, "--arena": "4M", "--host-memory": "4M"}
    return [str(part) for option in told.items() for part in option]


@dataclass
class Buggy:
    """An engine process in which a request of the share `unlucky` meets a bug."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path


@pytest.fixture
def buggy(tiny_base_model: Path, tmp_path: Path) -> Iterator[Buggy]:
    command = [sys.executable, "-c", BUGGY, *options(tiny_base_model, tmp_path)]
    environment = os.environ | {"LORAYARD_ENGINE_SECRET": SECRET}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield Buggy(process, f"unix:{tmp_path}/s", tmp_path / "log")
    process.kill()
    process.wait()


async def tokens(stream: AsyncIterator[Event]) -> int:
    async with asyncio.timeout(60):
        return len([event async for event in stream])


async def test_a_broken_engine_fails_all_streams_and_its_process_ends(buggy: Buggy) -> None:
    client = EngineClient(buggy.url, SECRET)
    deadline = time.monotonic() + 90
    while not await client.healthy():
        assert time.monotonic() < deadline, buggy.log.read_text()
        await asyncio.sleep(0.1)
    under_way = client.generate(Generation("r", [5, 6, 7], LONG, share="acme"))
    await anext(under_way)
    unlucky = client.generate(Generation("r", [5, 6, 7], LONG, share="unlucky"))
    for stream in (unlucky, under_way):
        with pytest.raises(Internal, match="The engine broke"):
            await tokens(stream)
    assert await asyncio.to_thread(buggy.process.wait, 60) == 1
    assert not await client.healthy()
    await client.close()
    said = buggy.log.read_text()
    assert "AssertionError: a bug" in said
    assert said.splitlines()[-1].startswith("The engine broke.")


@pytest.fixture
async def service(tiny_base_model: Path, tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose engine takes a step when the test says so."""
    model = load(str(tiny_base_model), torch.device("cpu"), torch.float32, 2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base_model).backend_tokenizer
    service = Service(model, tokenizer, parse(options(tiny_base_model, tmp_path)))
    yield service
    service._loader.close()


def asked(stop: str = "") -> pb.GenerateRequest:
    sampling = pb.Sampling(max_tokens=12, temperature=0, top_p=1, ignore_eos=True, stop=[stop] if stop else [])
    return pb.GenerateRequest(prompt=[5, 6, 7], sampling=sampling)


async def calls(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateCall]:
    """A caller that reads on."""
    yield pb.GenerateCall(request=request)
    await asyncio.Event().wait()


async def answer(service: Service, request: pb.GenerateRequest) -> tuple[list[pb.Delta], pb.Finished]:
    """The engine has made all twelve tokens before the stream reads the first."""

    async def read() -> list[pb.GenerateEvent]:
        return [event async for event in service.Generate(calls(request), None)]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    for _ in range(14):
        service.engine.step()
    events = await reading
    return [event.delta for event in events if event.HasField("delta")], events[-1].finished


@pytest.mark.parametrize("others", [False, True], ids=["alone", "pinned before"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_who_goes_away_when_its_pin_has_just_been_made_leaves_none(
    service: Service, workshop: Any, tiny_base_model: Path, tmp_path: Path, turns: int, others: bool
) -> None:
    adapter = workshop.adapter(workshop.base_at(tiny_base_model), "pinned", r=2, target_modules=["q_proj"])
    digest = Store(f"file://{tmp_path}/store").put(workshop.uploadable(adapter)).digest
    slots = service._scheduler.slots
    there = slots.bring(digest)
    while not there.done():
        service.engine.step()
        await asyncio.sleep(0.01)
    if others:
        slots.hold(digest)
    asking = asyncio.create_task(service.Preload(pb.PreloadRequest(digest=digest, pin=True), None))
    await asyncio.sleep(0)
    service.engine.step()
    assert slots.held == {digest}
    for _ in range(turns):
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    service.engine.step()
    assert slots.held == ({digest} if others else set())


async def test_usage_counts_what_was_told_however_far_the_engine_is_ahead(service: Service) -> None:
    whole, finished = await answer(service, asked())
    assert sum(len(delta.tokens) for delta in whole) == finished.completion_tokens == 12
    stop = "".join(delta.text for delta in whole[:6])[-2:]
    cut, finished = await answer(service, asked(stop))
    assert finished.reason == "stop"
    assert 0 < finished.completion_tokens == sum(len(delta.tokens) for delta in cut) < 12


async def test_a_broken_engine_is_not_serving_however_fresh_its_last_step_is(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def status() -> Any:
        return (await service.Check(health_pb2.HealthCheckRequest(), None)).status

    await answer(service, asked())
    assert await status() == health_pb2.HealthCheckResponse.SERVING
    monkeypatch.setattr(service._scheduler, "plan", lambda: 1 / 0)
    service.engine.start()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wrap_future(service.engine.ended)
    assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING
