"""Minutes of random load on an engine process: loads, unloads, pins, cancellations, preemption, and a store that fails.

`make soak` runs it, for SOAK_SECONDS (600). It stops by itself. The engine asserts its laws after every step; here
every greedy answer must equal the first one of its kind, and memory must not grow. The store is a folder, since no
file system that asks a server is among the dependencies: it is moved away, a version in it is damaged, or hangs.
"""

import asyncio
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
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
    EngineDown,
    Finished,
    Generation,
    PinsFull,
    Sampling,
)

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SECRET = "soak"
CLIENTS = 12
GRACE = 10.0  # seconds after a fault in which loads that it broke may still be told of
WEIGHTS = {"acme": 1.0, "globex": 3.0, "initech": 0.5}
VARIANTS: list[dict[str, Any]] = [
    {"r": 1, "target_modules": ["q_proj", "v_proj"]},
    {"r": 32, "target_modules": "all-linear"},
    {"r": 4, "target_modules": ["down_proj"], "use_rslora": True, "rank_pattern": {"layers.1.mlp.down_proj": 64}},
    {"r": 4, "target_modules": ["q_proj", "up_proj"], "use_dora": True},
    {"r": 2, "target_modules": ["o_proj", "embed_tokens", "lm_head"], "use_dora": True},
    {"r": 4, "target_modules": ["k_proj", "gate_proj"], "lora_bias": True},
    {"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["lm_head", "model.norm"]},
    {"r": 4, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["layers.1.mlp"]},
    {"r": 256, "target_modules": ["v_proj"], "lora_alpha": 64},
    {"r": 8, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"r": 16, "target_modules": ["gate_proj", "up_proj", "down_proj"], "use_rslora": True},
    {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
]
SEEN = ("finished", "left", "late", "unavailable", "evicted", "preloaded", "pinned", "full", "called off", "burst")
FAULTS = ("gone", "damaged", "hangs")

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
    pinned: set[str] = field(default_factory=set)
    broken_until: dict[str, float] = field(default_factory=dict)
    faults: Iterator[str] = field(default_factory=lambda: itertools.cycle(FAULTS))

    async def ask(self, draw: random.Random, tokens: int = 0) -> None:
        digest, question = draw.choice(["", *self.digests]), draw.randrange(6)
        prompt = [2 + (question * 37 + n * n) % 200 for n in range(10 + 45 * question)]
        sampling = Sampling(max_tokens=tokens or draw.choice([4, 40, 120]), temperature=0.0, ignore_eos=True)
        share = draw.choice(list(WEIGHTS))
        place: dict[str, Any] = {"weight": WEIGHTS[share], "priority": draw.choice([-1, 0, 0, 5])}
        asked = Generation("soak", prompt, sampling, digest, share, salt=share, **place)
        if draw.random() < 0.2:
            asked = Generation("soak", prompt, sampling, digest, share, salt=share, start_within=0.02, **place)
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
        except (AdapterMissing, AdapterUnavailable) as error:
            self.forgive(digest, error)
            return
        except EngineBusy:
            assert asked.start_within, "a request was refused that may wait"
            self.seen["late"] += 1
            return
        finally:
            await stream.aclose()
        known = self.known.setdefault((digest, question), text)
        shorter, longer = sorted((known, text), key=len)
        assert longer.startswith(shorter.rstrip("\ufffd")), "an answer changed"
        self.known[digest, question] = longer
        self.seen["finished"] += finished

    def forgive(self, digest: str, error: Exception) -> None:
        assert time.monotonic() < self.broken_until.get(digest, 0.0), f"an adapter was lost: {error}"
        self.seen["unavailable"] += 1

    async def disturb(self, draw: random.Random) -> None:
        """Unload, preload, pin, ask for much at once, or break the store for some seconds."""
        digest = draw.choice(self.digests)
        match draw.randrange(7):
            case 0:
                await self.client.evict(digest, timeout=30)
                self.pinned.discard(digest)
                self.seen["evicted"] += 1
            case 1:
                await self.preload(digest)
            case 2:
                await self.preload(digest, pin=True)
            case 3:
                await self.call_off(digest, draw)
            case 4:
                self.seen["burst"] += 1
                await asyncio.gather(*(self.ask(draw, tokens=2) for _ in range(40)))
            case 5:
                await self.fault(digest)
            case 6:
                await self.overpin()
        if self.pinned and draw.random() < 0.5:
            await self.client.unpin(self.pinned.pop(), timeout=30)

    async def preload(self, digest: str, *, pin: bool = False) -> None:
        try:
            await self.client.preload(digest, pin=pin)
        except (AdapterMissing, AdapterUnavailable) as error:
            self.forgive(digest, error)
        except PinsFull:
            self.seen["full"] += 1
        else:
            self.seen["pinned" if pin else "preloaded"] += 1
            if pin:
                self.pinned.add(digest)

    async def overpin(self) -> None:
        """Pin one after another until that is too many."""
        before = self.seen["full"]
        for digest in self.digests:
            if self.seen["full"] == before:
                await self.preload(digest, pin=True)
        while self.pinned:
            await self.client.unpin(self.pinned.pop(), timeout=30)

    async def call_off(self, digest: str, draw: random.Random) -> None:
        """Ask for a pin, and go away before it is there."""
        if digest in self.pinned:
            return
        await self.client.evict(digest, timeout=30)
        try:
            await self.client.preload(digest, pin=True, timeout=draw.choice([0.001, 0.01]))
        except EngineDown:
            self.seen["called off"] += 1
        except (AdapterMissing, AdapterUnavailable, PinsFull):
            return
        await self.client.unpin(digest, timeout=30)  # the answer may have been under way

    async def fault(self, digest: str) -> None:
        """A few seconds in which versions that no tier has can't be loaded."""
        fault = next(self.faults)
        async with getattr(self, fault)(digest):
            await self.client.evict(digest, timeout=30)
            self.pinned.discard(digest)
            await self.preload(digest)
        self.seen[fault] += 1

    @asynccontextmanager
    async def gone(self, _: str) -> AsyncIterator[None]:
        away = self.store.with_name("away")
        self.broken_until = dict.fromkeys(self.digests, float("inf"))
        self.store.rename(away)
        yield
        await asyncio.sleep(3)
        away.rename(self.store)
        self.broken_until = dict.fromkeys(self.digests, time.monotonic() + GRACE)

    @asynccontextmanager
    async def damaged(self, digest: str) -> AsyncIterator[None]:
        manifest = Store(f"file://{self.store}").manifest(digest)
        blob = self.store / "blobs" / max(manifest.files, key=lambda file: file.size).sha256
        whole = blob.read_bytes()
        async with self.broken(digest, blob):
            blob.write_bytes(whole[: len(whole) // 2] + b"evil" + whole[len(whole) // 2 + 4 :])
            yield
            await asyncio.sleep(2)

    @asynccontextmanager
    async def hangs(self, digest: str) -> AsyncIterator[None]:
        manifest = self.store / "manifests" / digest.removeprefix("sha256:")
        async with self.broken(digest, manifest):
            os.mkfifo(manifest)
            yield
            with suppress(OSError):  # nobody reads
                os.close(os.open(manifest, os.O_WRONLY | os.O_NONBLOCK))

    @asynccontextmanager
    async def broken(self, digest: str, file: Path) -> AsyncIterator[None]:
        self.broken_until[digest] = float("inf")
        whole = file.with_name("whole")
        os.rename(file, whole)
        yield
        whole.replace(file)
        self.broken_until[digest] = time.monotonic() + GRACE


@pytest.fixture
def engine(workshop: Any, tiny_base_model: Path) -> Iterator[tuple[Path, list[str], subprocess.Popen[bytes]]]:
    base = workshop.base_at(tiny_base_model)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        store = Store(f"file://{folder}/store")
        adapters = [workshop.adapter(base, f"soak-{n}", **variant) for n, variant in enumerate(VARIANTS)]
        digests = [store.put(workshop.uploadable(adapter)).digest for adapter in adapters]
        command = [sys.executable, "-m", "inference.server", "--model", str(tiny_base_model), "--check"]
        command += ["--listen", f"unix:{folder}/socket", "--store", store.url, "--cache", f"{folder}/cache"]
        command += ["--slots", "4", "--kv-tokens", "1600", "--max-rows", "16", "--max-batch-tokens", "64"]
        command += ["--load-timeout", "5", "--host-memory", "1M"]
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
            await asyncio.sleep(0.5)
            await soak.disturb(draw)
            soak.memory.append(soak.process.memory_info().rss)

    async with asyncio.TaskGroup() as tasks:
        for seed in range(CLIENTS):
            tasks.create_task(load(seed))
        tasks.create_task(trouble())

    for digest in soak.pinned:
        await client.unpin(digest)
    stats, residency = await client.stats(), await client.residency()
    for digest in digests:
        await client.evict(digest)
    after, left = await client.stats(), await client.residency()
    await client.close()
    memory = f"memory {soak.memory[0] >> 20} to {soak.memory[-1] >> 20} MiB"
    print(f"\n{dict(soak.seen)}, {dict(stats.counters)}, {memory}, at most {max(soak.memory) >> 20}")
    assert soak.seen["finished"] > SECONDS
    assert [what for what in (*SEEN, *FAULTS) if not soak.seen[what]] == [], "this never happened"
    assert not any(adapter.pinned for adapter in residency.adapters), "a pin was left"
    assert after.gauges["running"] == after.gauges["waiting"] == after.gauges["adapter_bytes"] == 0
    assert left.adapters == ()
    assert [tier.bytes for tier in left.tiers] == [0, 0, 0]
    assert after.gauges["blocks_free"] == after.gauges["blocks"]
    assert stats.counters["failed_steps_total"] == 0
    for name in ("preemptions_total", "adapter_evictions_total", "adapter_load_failures_total"):
        assert stats.counters[name] > 0
    settled = soak.memory[len(soak.memory) // 4]
    assert max(soak.memory[-5:]) < settled * 1.05 + (8 << 20), "memory grew"
