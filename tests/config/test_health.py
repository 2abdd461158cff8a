"""/healthz, /readyz and /metrics, with the real three behind them."""

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from django.conf import settings
from django.test import AsyncClient

from config import health
from config.health import EngineCollector
from gateway import engine as gateway_engine
from gateway import lifespan
from inference.client import Stats, Tier


@pytest.fixture
def nothing_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that point to an engine and a Redis which are not there."""
    changed: Mapping[str, Any] = {"engine_url": "unix:/nowhere/engine.sock", "redis_url": "unix:///nowhere/redis.sock"}
    monkeypatch.setattr(settings, "LORAYARD", settings.LORAYARD.model_copy(update=changed))
    monkeypatch.setattr(gateway_engine, "_clients", WeakKeyDictionary())  # the loop may have one of the real engine


async def test_a_living_process_says_so_whatever_is_down(async_client: AsyncClient, nothing_else_runs: None) -> None:
    answer = await async_client.get("/healthz")
    assert answer.status_code == 200


@pytest.mark.django_db(transaction=True)
async def test_ready_when_all_three_answer(async_client: AsyncClient, engine: str) -> None:
    answer = await async_client.get("/readyz?exclude=periodic")
    assert answer.json() == {"status": "ok", "database": "ok", "redis": "ok", "engine": "ok", "gateway": "ok"}
    assert answer.status_code == 200


@pytest.mark.django_db(transaction=True)
async def test_what_is_down_is_named(async_client: AsyncClient, nothing_else_runs: None) -> None:
    answer = await async_client.get("/readyz?exclude=periodic")
    assert answer.json() == {"status": "down", "database": "ok", "redis": "down", "engine": "down", "gateway": "ok"}
    assert answer.status_code == 503
    assert answer["Retry-After"] == "1"


async def test_metrics_hold_the_engines_numbers(async_client: AsyncClient, engine: str) -> None:
    text = (await async_client.get("/metrics")).content.decode()
    assert "lorayard_engine_up 1.0" in text
    assert "# TYPE lorayard_engine_steps_total counter" in text
    assert 'lorayard_engine_tier_limit{tier="disk"}' in text
    assert "python_info" in text


async def test_metrics_do_without_an_engine(async_client: AsyncClient, nothing_else_runs: None) -> None:
    answer = await async_client.get("/metrics")
    assert answer.status_code == 200
    assert "lorayard_engine_up 0.0" in answer.content.decode()


def samples(stats: Stats) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in EngineCollector(stats).collect()
        for sample in family.samples
    }


def test_tiers_are_told_by_their_names() -> None:
    tiers = (Tier("device", 5, 9, 1, 3, 2, 2, 1, 0.5), Tier("host", 7, 8, 2))
    told = samples(Stats(tiers=tiers))
    assert told["lorayard_engine_tier_bytes", "device"] == 5
    assert told["lorayard_engine_tier_limit", "host"] == 8
    assert told["lorayard_engine_tier_hits_total", "device"] == 3
    assert told["lorayard_engine_tier_misses_total", "device"] == 2
    assert told["lorayard_engine_tier_seconds_total", "device"] == 0.5


def test_steps_are_counted_by_the_adapters_in_their_batch() -> None:
    stats = Stats({"running": 2.0}, {"steps_total": 7.0, "tokens_generated_total": 9.0}, {1: 4, 3: 3}, {2: 7})
    assert samples(stats) == {
        ("lorayard_engine_up",): 1,
        ("lorayard_engine_running",): 2,
        ("lorayard_engine_tokens_generated_total",): 9,
        ("lorayard_engine_steps_total", "1"): 4,
        ("lorayard_engine_steps_total", "3"): 3,
        ("lorayard_engine_steps_by_rows_total", "2"): 7,
    }


@pytest.mark.django_db(transaction=True)
async def test_a_gateway_that_would_have_to_load_its_tokenizer_first_is_not_ready(
    async_client: AsyncClient, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE", 1.0)
    gate = asyncio.Event()

    async def slow(_source: str) -> None:
        await gate.wait()

    monkeypatch.setattr("gateway.prompts.warm", slow)
    monkeypatch.setattr(lifespan, "_warming", WeakKeyDictionary())
    assert (await async_client.get("/readyz?exclude=periodic")).json()["gateway"] == "down"
    gate.set()
    async with asyncio.timeout(60):
        while (await async_client.get("/readyz?exclude=periodic")).json()["gateway"] != "ok":
            pass


async def test_a_probe_that_says_nothing_is_not_waited_for(
    async_client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.2)
    release = threading.Event()
    monkeypatch.setattr(health, "_selects", lambda: release.wait(60))
    began = time.monotonic()
    try:
        answer = await async_client.get("/readyz?exclude=periodic&exclude=gateway&exclude=engine&exclude=redis")
        assert (answer.status_code, answer.json()["database"]) == (503, "down")
        assert time.monotonic() - began < 30
    finally:
        release.set()
