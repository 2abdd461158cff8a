"""Reads what `demo/` carries: whose adapters there are, and a first thing to ask one. Knows files and no tables."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.env import DEMO_MODEL, ROOT, Env

ADAPTERS = ROOT / "demo" / "adapters"
INDEX = ADAPTERS / "index.json"
HELLO = "Hello!"


@dataclass(frozen=True)
class Upload:
    """One version to upload. An adapter's versions come in the order of their numbers."""

    tenant: str
    adapter: str
    number: int
    folder: Path


@dataclass(frozen=True)
class Call:
    """A first thing to ask, of which model, and with whose key."""

    tenant: str
    model: str
    prompt: str


def is_served(env: Env) -> bool:
    """Whether the base model is the one that the demo's adapters were made for."""
    return Path(env.base_model) == DEMO_MODEL


def base_name(env: Env) -> str | None:
    """What requests call the base model, where its source doesn't say."""
    return str(_index()["base"]) if is_served(env) else None


def uploads(env: Env) -> tuple[Upload, ...]:
    """Nothing for another base model: the demo's adapters would not fit it."""
    return tuple(
        Upload(entry["tenant"], entry["adapter"], version["number"], ADAPTERS / version["path"])
        for entry in (_index()["adapters"] if is_served(env) else ())
        for version in sorted(entry["versions"], key=lambda version: int(version["number"]))
    )


def first_call(env: Env, tenant: str, base: str) -> Call:
    """Of the tenant's first adapter, an input that it was not trained on; of the base model where there is none."""
    for entry in _index()["adapters"] if is_served(env) else ():
        if entry["tenant"] == tenant:
            return Call(tenant, f"{tenant}/{entry['adapter']}", entry["samples"][0]["prompt"])
    return Call(tenant, base, HELLO)


def _index() -> dict[str, Any]:
    return dict(json.loads(INDEX.read_text()))
