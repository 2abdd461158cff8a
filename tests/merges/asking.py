"""How tests ask for merges over the API, and look at them."""

from collections.abc import Callable
from typing import Any

from rest_framework.test import APIClient

from merges.models import State
from registry.models import Version

Clients = Callable[..., APIClient]
Pushes = Callable[..., Version]
Files = Callable[[], set[str]]
Run = Callable[..., State | None]
ONE = {"adapter": "support", "version": 1}
INTO_BASE = {"kind": "checkpoint", "sources": [ONE]}
BOTH = [{**ONE, "weight": 0.7}, {"adapter": "query", "version": 1, "weight": 0.3}]
COMBINE = {"kind": "version", "adapter": "mixed", "sources": BOTH, "method": "linear"}


def ask(client: APIClient, body: dict[str, Any], status: int = 202) -> Any:
    answer = client.post("/api/v1/merges", body, format="json")
    assert answer.status_code == status, answer.content
    return answer.json()


def show(client: APIClient, told: Any) -> Any:
    return client.get(f"/api/v1/merges/{told['id']}").json()
