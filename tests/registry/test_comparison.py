"""How two versions differ, told at once or by a worker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from rest_framework.test import APIClient

from adapters.store import Store
from jobs import tasks
from registry.models import Version
from registry.services import comparison
from tenants.models import Tenant

Clients = Callable[..., APIClient]
Push = Callable[..., Version]
DIFF = "/api/v1/adapters/support/versions/1/diff/2"


def test_two_versions_are_compared_module_by_module(
    acme: Tenant,
    globex: Tenant,
    push: Push,
    make_adapter: Callable[..., Path],
    tiny_base_model: Path,
    tmp_path: Path,
    client_of: Clients,
) -> None:
    push(acme, "support")
    push(acme, "support", make_adapter(tmp_path / "wide", tiny_base_model, rank=8, targets=["q_proj"]))
    client = client_of(acme)
    client.patch("/api/v1/adapters/support/versions/2", {"metrics": {"loss": 0.25}}, format="json")
    found = client.get(DIFF).json()
    assert found["versions"] == [1, 2]
    assert (found["summary"]["rank_max"], found["summary"]["targets"]) == ([4, 8], [["q_proj", "v_proj"], ["q_proj"]])
    assert (found["config"]["r"], found["metrics"]) == ([4, 8], {"loss": [None, 0.25]})
    assert found["scores"] == {}
    modules = {module["module"]: module for module in found["modules"]}
    assert modules["model.layers.0.self_attn.q_proj"]["ranks"] == [4, 8]
    gone = modules["model.layers.1.self_attn.v_proj"]
    assert (gone["ranks"], gone["norms"][1]) == ([4, None], None)
    assert gone["difference"] == gone["norms"][0] > 0
    assert client.get(DIFF.replace("diff/2", "diff/1")).json()["difference"] == 0
    assert client_of(globex).get(DIFF).status_code == 404
    assert client.get(DIFF.replace("diff/2", "diff/3")).status_code == 404


def test_large_ones_are_compared_by_a_worker_that_is_asked_once(
    acme: Tenant, push: Push, client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = push(acme, "support"), push(acme, "support", 1)
    cache.delete(comparison._key(first, second))
    cache.delete(f"{comparison._key(first, second)}:asked")
    monkeypatch.setattr(comparison, "AT_ONCE", 0)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(comparison, "send", lambda _task, *versions: asked.append(versions))
    client = client_of(acme)
    for _ in range(2):
        waiting = client.get(DIFF)
        assert (waiting.status_code, waiting.headers["Retry-After"]) == (202, "2")
    assert asked == [(str(first.pk), str(second.pk))]
    tasks.work_out_comparison.apply(args=asked[0], throw=True)
    assert client.get(DIFF).json()["difference"] > 0


def test_a_version_whose_files_are_lost_is_told_so(acme: Tenant, push: Push, client_of: Clients, settings: Any) -> None:
    push(acme, "support")
    lost = push(acme, "support", 1)
    Store(settings.LORAYARD.store_url).delete(lost.digest)
    answer = client_of(acme).get(DIFF)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "version_not_ready")


def test_a_cache_that_is_away_is_a_503_that_says_so(
    acme: Tenant, push: Push, client_of: Clients, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    push(acme, "support")
    push(acme, "support", 1)
    monkeypatch.setattr(comparison, "AT_ONCE", 0)
    nowhere = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1:1/0"}
    settings.CACHES = {"default": nowhere}
    answer = client_of(acme).get(DIFF)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
