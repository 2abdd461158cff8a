"""An upload over real HTTP to a platform in processes of its own: uvicorn, Redis, a prefork Celery worker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import wait_for

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(
    base_model_folder: Path, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), base_model_folder, rank=4)


def settle(platform: Any, key: str, name: str, config: bytes, weights: bytes) -> dict[str, Any]:
    """Uploads and waits for the worker's verdict."""
    headers = {"Authorization": f"Bearer {key}"}
    files = {"config": (CONFIG, config), "weights": (WEIGHTS, weights)}
    url = f"{platform.url}/api/v1/adapters/{name}/versions"
    answer = httpx.post(url, files=files, headers=headers, timeout=60)
    assert answer.status_code == 202, answer.text
    shown: dict[str, Any] = {}

    def settled() -> bool:
        shown.update(httpx.get(platform.url + answer.headers["Location"], headers=headers, timeout=60).json())
        return shown["state"] in ("ready", "rejected")

    wait_for(settled, 60, "validation")
    return shown


def test_an_upload_is_validated_by_the_platforms_worker(platform: Any, folder: Path) -> None:
    _, key = platform.tenant("initech")
    _, stranger = platform.tenant("umbrella")
    good = settle(platform, key, "uploads", (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes())
    assert (good["state"], good["version"], good["summary"]["rank_max"]) == ("ready", "v1", 4)
    bad = settle(platform, key, "uploads", (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()[:-1])
    assert (bad["state"], bad["findings"][0]["rule"]) == ("rejected", "truncated")
    path = f"{platform.url}/api/v1/adapters/uploads/versions/1"
    assert httpx.get(path, headers={"Authorization": f"Bearer {stranger}"}, timeout=60).status_code == 404
    assert httpx.get(path, timeout=60).status_code == 401


def test_openapi_and_its_page_are_served(platform: Any) -> None:
    assert "/api/v1/adapters/{name}/versions" in httpx.get(f"{platform.url}/api/schema", timeout=60).text
    assert httpx.get(f"{platform.url}/api/docs", timeout=60).status_code == 200
