"""Two tenants with adapters of their own on a whole platform, called through the `openai` package."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from config import env
from inference.client import EngineClient


@dataclass(frozen=True)
class Customer:
    """A tenant as its applications see it."""

    url: str
    slug: str
    key: str
    _clients: dict[str, Any] = field(default_factory=dict)

    @property
    def openai(self) -> OpenAI:
        if "sync" not in self._clients:
            self._clients["sync"] = OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)
        client: OpenAI = self._clients["sync"]
        return client

    @property
    def async_openai(self) -> AsyncOpenAI:
        if "async" not in self._clients:
            self._clients["async"] = AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)
        client: AsyncOpenAI = self._clients["async"]
        return client

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=60, **options)

    def chat(self, model: str, say: str = "hello", tokens: int = 12, **options: Any) -> str:
        """A greedy answer."""
        answer = self.openai.chat.completions.create(
            model=model, messages=[{"role": "user", "content": say}], max_tokens=tokens, temperature=0, **options
        )
        return answer.choices[0].message.content or ""


@pytest.fixture(scope="session")
def upload(platform: Any) -> Callable[[str, str, Path], int]:
    """upload(key, name, folder): the number of the new version, once it is ready."""

    def ready(key: str, name: str, folder: Path) -> int:
        url = f"{platform.url}/api/v1/adapters/{name}/versions"
        bearer = {"Authorization": f"Bearer {key}"}
        files = [
            ("file", (file, (folder / file).read_bytes()))
            for file in ("adapter_config.json", "adapter_model.safetensors")
        ]
        made = httpx.post(url, headers=bearer, files=files, timeout=60)
        assert made.status_code == 202, made.text
        number = int(made.json()["number"])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            version = platform.call("GET", f"adapters/{name}/versions/{number}", key)
            if version["state"] in ("ready", "rejected"):
                assert version["state"] == "ready", version
                return number
            time.sleep(0.1)
        pytest.fail(f"version {number} of {name} was not validated in time")

    return ready


@pytest.fixture(scope="session")
def customers(
    platform: Any,
    upload: Callable[[str, str, Path], int],
    make_adapter: Callable[..., Path],
    base_model_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Customer]:
    """acme has `support` with two versions, `stable` being the first; globex, the stranger, has `notes`."""
    folder = tmp_path_factory.mktemp("adapters")
    made = {}
    for slug, name, seeds in (("gate-acme", "support", (1, 2)), ("gate-globex", "notes", (3,))):
        _, key = platform.tenant(slug)
        platform.call("POST", "adapters", key, name=name)
        for seed in seeds:
            adapter = make_adapter(folder / f"{name}-{seed}", base_model_folder, rank=4 * seed, seed=seed, scale=8.0)
            upload(key, name, adapter)
        made[slug] = Customer(platform.url, slug, key)
    return made


@pytest.fixture(scope="session")
def buyer(customers: dict[str, Customer]) -> Customer:
    """The tenant of most tests: gate-acme, with `support` in versions 1 and 2."""
    return customers["gate-acme"]


@pytest.fixture(scope="session")
def stranger(customers: dict[str, Customer]) -> Customer:
    """gate-globex, with `notes`."""
    return customers["gate-globex"]


@pytest.fixture(scope="session")
def base_name(buyer: Customer) -> str:
    return next(model.id for model in buyer.openai.models.list() if model.owned_by == "lorayard")


@pytest.fixture
def load(engine: str) -> Callable[[], Awaitable[tuple[float, float]]]:
    """await load(): the sequences that the engine holds now, waiting ones included, and the tokens it ever made."""

    async def now() -> tuple[float, float]:
        client = EngineClient(engine, env.load().engine_secret)
        try:
            stats = await client.stats()
        finally:
            await client.close()
        return stats.gauges["running"] + stats.gauges["waiting"], stats.counters["generated_tokens_total"]

    return now


@pytest.fixture(scope="session")
def issue(platform: Any, buyer: Customer) -> Callable[..., tuple[str, str]]:
    """issue("adapters:read", adapters=["x"]): a new key of the buyer's, and its id."""

    def made(*scopes: str, **options: Any) -> tuple[str, str]:
        answer = platform.call("POST", "keys", buyer.key, name="limited", scopes=list(scopes), **options)
        return answer["key"], answer["id"]

    return made
