"""Reads what `demo/` carries: which adapter belongs to which tenant, and a first thing to ask. Knows files only."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config.env import DEMO_MODEL, ROOT, Env

ADAPTERS = ROOT / "demo" / "adapters"
MODEL_NAME = "lorayard-demo"


@dataclass(frozen=True)
class Upload:
    """One version to upload. An adapter's versions come in the order of their numbers."""

    tenant: str
    adapter: str
    number: int
    folder: Path


@dataclass(frozen=True)
class Call:
    """Something to ask, and of whom."""

    model: str
    messages: list[dict[str, str]]


def is_served(env: Env) -> bool:
    """Whether the base model is the one that the demo's adapters were made for."""
    return Path(env.base_model) == DEMO_MODEL


def uploads() -> tuple[Upload, ...]:
    return ()


def first_call(env: Env, adapters: Sequence[str]) -> Call:
    hello = [{"role": "user", "content": "Hello!"}]
    return Call(model_name(env), hello)


def model_name(env: Env) -> str:
    """What requests call the base model: a hub id, or a folder's last part."""
    if is_served(env):
        return MODEL_NAME
    folder = Path(env.base_model)
    return folder.resolve().name if folder.is_dir() else env.base_model
