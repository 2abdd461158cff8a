"""Evaluations on a whole platform: real uploads, the background worker in its own process, the real engine."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.evaluations.conftest import jsonl, line
from tests.processes import wait_for

FILES = ("adapter_config.json", "adapter_model.safetensors")


class Owner:
    """A tenant with `support` in two versions, as its scripts see it."""

    def __init__(self, platform: Any, slug: str) -> None:
        self.platform = platform
        _, self.key = platform.tenant(slug)

    def call(self, method: str, path: str, **body: object) -> Any:
        return self.platform.call(method, path, self.key, **body)

    def post(self, path: str, **options: Any) -> Any:
        bearer = {"Authorization": f"Bearer {self.key}"}
        answer = httpx.post(f"{self.platform.url}{path}", headers=bearer, timeout=60, **options)
        assert answer.is_success, answer.text
        return answer.json()

    def push(self, folder: Path) -> None:
        files = [("file", (name, (folder / name).read_bytes())) for name in FILES]
        number = self.post("/api/v1/adapters/support/versions", files=files)["number"]
        path = f"adapters/support/versions/{number}"
        wait_for(lambda: self.call("GET", path)["state"] == "ready", 60, "validation")

    def chat(self, model: str, content: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": content}]
        body = {"model": model, "messages": messages, "temperature": 0, **options}
        return self.post("/v1/chat/completions", json=body)["choices"][0]

    def add_set(self, name: str, *rows: dict[str, Any]) -> None:
        self.post("/api/v1/evaluation-sets", data={"name": name}, files={"file": ("s.jsonl", jsonl(*rows))})

    def evaluate(self, name: str, model: str) -> str:
        return str(self.call("POST", "evaluations", set=name, model=model)["id"])

    def done(self, evaluation: str, seconds: float = 60) -> Any:
        path = f"evaluations/{evaluation}"
        settled = ("succeeded", "failed", "cancelled")
        wait_for(lambda: self.call("GET", path)["state"] in settled, seconds, "the evaluation's end")
        return self.call("GET", path)


@pytest.fixture(scope="module")
def owner(
    platform: Any, make_adapter: Callable[..., Path], base_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Owner:
    owner = Owner(platform, "hooli")
    for seed in (1, 2):
        owner.push(make_adapter(tmp_path_factory.mktemp("a"), base_model_folder, rank=4, seed=seed, scale=8.0))
    return owner


def test_versions_are_scored_by_what_they_really_answer_and_shown_beside_each_other(
    owner: Owner, platform: Any
) -> None:
    words = ("one", "two", "three")
    said = {word: owner.chat("support", word, max_tokens=8)["message"]["content"] for word in words}
    rows = [line(word, "exact", text or "nothing", max_tokens=8) for word, text in said.items()]
    owner.add_set("said", *rows, line("four", "json-schema", False, max_tokens=8))
    owner.add_set("likely", *(line(word, "log-likelihood", "yes, it is.") for word in words))
    models = ("support", "support@v2")
    asked = {(name, model): owner.evaluate(name, model) for name in ("said", "likely") for model in models}
    scores = {which: owner.done(evaluation)["score"] for which, evaluation in asked.items()}

    passed = sum(bool(text.strip()) for text in said.values())
    assert scores["said", "support"]["mean"] == passed / 4 > scores["said", "support@v2"]["mean"]
    for model in models:
        told = [owner.chat(model, word, logprobs=True, forced_answer="yes, it is.")["logprobs"] for word in words]
        expected = math.fsum(entry["logprob"] for one in told for entry in one["content"]) / (3 * len("yes, it is."))
        assert scores["likely", model]["mean"] == pytest.approx(expected, abs=1e-4)

    compared = owner.call("GET", "evaluations/comparison?adapter=support")
    assert [row["model"] for row in compared["models"]] == ["hooli/support@v1", "hooli/support@v2"]
    assert all(set(row["scores"]) >= {"said", "likely"} for row in compared["models"])
    metered = (
        "SELECT call.id FROM metering_call call JOIN tenants_tenant tenant ON tenant.id = tenant_id"
        " WHERE slug = 'hooli' AND purpose = 'evaluation'"
    )
    wait_for(lambda: len(platform.rows(metered)) >= 14, 60, "the evaluations' use in the ledger")


def test_an_evaluation_outlives_its_worker(owner: Owner, platform: Any) -> None:
    rows = [line(f"number {n}", "contains", "x", max_tokens=200) for n in range(16)]
    owner.add_set("long", *rows)
    workers = background_workers(platform)
    evaluation = owner.evaluate("long", "support@v1")
    path = f"evaluations/{evaluation}"
    wait_for(lambda: owner.call("GET", path)["done"] >= 2, 60, "the first results")
    for process in workers:
        process.kill()
    before = owner.call("GET", path)
    assert (before["state"], before["done"] < 16) == ("running", True)
    after = owner.done(evaluation)
    assert (after["state"], after["done"], after["score"]["n"]) == ("succeeded", 16, 16)
    events = owner.call("GET", "audit?action=key:issued")["results"]
    assert sum(event["data"]["name"] == f"evaluation {evaluation}" for event in events) == 2


def background_workers(platform: Any) -> list[psutil.Process]:
    """Both the one that watches the queue and the one that works."""
    home, found = platform.environment["LORAYARD_HOME"], []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "worker --queues background" in line and process.environ().get("LORAYARD_HOME") == home:
            found.append(process)
    return found
