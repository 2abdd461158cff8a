"""Minutes of random load on an engine process: loads, unloads, cancellations, preemption, and a store that goes away.

`make soak` runs it, for SOAK_SECONDS (600). It stops by itself. The engine asserts its laws after every step; here
every greedy answer must equal the first one of its kind, and memory must not grow.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.store import Store
from inference.client import (
    AdapterMissing,
    AdapterUnavailable,
    Delta,
    EngineBusy,
    EngineClient,
    Finished,
    Generation,
    Sampling,
)

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SECRET = "soak"
CLIENTS = 12
ADAPTERS = 12

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS + 300)]


@dataclass
class Soak:
    """One run's engine, and what it saw."""

    client: EngineClient
    store: Path
    digests: list[str]
    process: psutil.Process
    known: dict[tuple[str, int], str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    outage: bool = False
    outage_until: float = 0.0

    async def ask(self, draw: random.Random) -> None:
        digest, question = draw.choice(["", *self.digests]), draw.randrange(6)
        prompt = [2 + (question * 37 + n * n) % 200 for n in range(10 + 45 * question)]
        sampling = Sampling(max_tokens=draw.choice([4, 40, 120]), temperature=0.0, ignore_eos=True)
        share = draw.choice(["acme", "globex", "initech"])
        asked = Generation("soak", prompt, sampling, digest, share, salt=share)
        leaves_after = draw.choice([None, None, None, 1, 7])
        text, finished = "", False
        stream = self.client.generate(asked)
        try:
            async for event in stream:
                if isinstance(event, Delta):
                    text += event.text
                    if leaves_after is not None and len(text) > leaves_after:
                        self.seen["left"] += 1
                        break
                finished = isinstance(event, Finished)
        except (AdapterMissing, AdapterUnavailable):
            assert self.outage or time.monotonic() < self.outage_until, "an adapter was lost"
            self.seen["unavailable"] += 1
            return
        except EngineBusy:
            self.seen["busy"] += 1
            return
        finally:
            await stream.aclose()
        known = self.known.setdefault((digest, question), text)
        longer, shorter = max(known, text, key=len), min(known, text, key=len)
        assert longer.startswith(shorter.rstrip("\ufffd")), "an answer changed"
        self.known[digest, question] = longer
        self.seen["finished"] += finished

    async def disturb(self, draw: random.Random) -> None:
        """Unload, preload, or take the store away for some seconds."""
        match draw.randrange(3):
            case 0:
                await self.client.evict(draw.choice(self.digests))
                self.seen["evicted"] += 1
            case 1:
                try:
                    await self.client.preload(draw.choice(self.digests))
                except (AdapterMissing, AdapterUnavailable):
                    assert self.outage or time.monotonic() < self.outage_until
            case 2 if draw.random() < 0.3:
                await self.store_outage()

    async def store_outage(self) -> None:
        away = self.store.with_name("away")
        self.outage = True
        self.store.rename(away)
        await asyncio.sleep(3)
        away.rename(self.store)
        self.outage, self.outage_until = False, time.monotonic() + 10
        self.seen["outages"] += 1


@pytest.fixture
def engine(workshop: Any, tiny_base_model: Path) -> Iterator[tuple[Path, list[str], subprocess.Popen[bytes]]]:
    base = workshop.base_at(tiny_base_model)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        store = Store(f"file://{folder}/store")
        adapters = [
            workshop.adapter(base, 500 + n, r=2 ** (n % 6), target_modules=targets)
            for n, targets in zip(range(ADAPTERS), [["q_proj", "v_proj"], ["down_proj"], "all-linear"] * 4, strict=True)
        ]
        digests = [store.put(workshop.uploadable(adapter)).digest for adapter in adapters]
        command = [sys.executable, "-m", "inference.server", "--model", str(tiny_base_model), "--check"]
        command += ["--listen", f"unix:{folder}/socket", "--store", store.url, "--cache", f"{folder}/cache"]
        command += ["--slots", "4", "--kv-tokens", "1600", "--max-rows", "16", "--max-batch-tokens", "64"]
        with (folder / "log").open("ab") as log:
            environment = os.environ | {"LORAYARD_ENGINE_SECRET": SECRET}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        yield folder, digests, process
        process.terminate()
        assert process.wait(30) == 0
        assert "Traceback" not in (folder / "log").read_text()


async def test_the_engine_keeps_its_laws_and_its_memory(
    engine: tuple[Path, list[str], subprocess.Popen[bytes]],
) -> None:
    folder, digests, process = engine
    client = EngineClient(f"unix:{folder}/socket", SECRET)
    while not await client.healthy():
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        await asyncio.sleep(0.2)
    soak = Soak(client, folder / "store", digests, psutil.Process(process.pid))
    end = time.monotonic() + SECONDS

    async def load(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < end:
            await soak.ask(draw)

    async def trouble() -> None:
        draw = random.Random(99)
        while time.monotonic() < end:
            await asyncio.sleep(1)
            await soak.disturb(draw)
            soak.memory.append(soak.process.memory_info().rss)

    async with asyncio.TaskGroup() as tasks:
        for seed in range(CLIENTS):
            tasks.create_task(load(seed))
        tasks.create_task(trouble())

    stats = await client.stats()
    residency = await client.residency()
    for adapter in residency.adapters:
        await client.evict(adapter.digest)
    after = await client.stats()
    left = await client.residency()
    await client.close()
    print(f"\n{dict(soak.seen)}, {stats.counters}, memory {soak.memory[0] >> 20} to {soak.memory[-1] >> 20} MiB")
    assert soak.seen["finished"] > SECONDS
    assert after.gauges["running"] == after.gauges["waiting"] == after.gauges["adapter_bytes"] == 0
    assert left.adapters == ()
    assert [tier.bytes for tier in left.tiers] == [0, 0, 0]
    assert after.gauges["blocks_free"] == after.gauges["blocks"]
    assert stats.counters["failed_steps_total"] == 0
    assert stats.counters["preemptions_total"] > 0
    settled = soak.memory[len(soak.memory) // 4]
    assert max(soak.memory[-5:]) < settled * 1.05 + (8 << 20), "memory grew"
