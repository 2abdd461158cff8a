"""Adapters in a store, for the tests of the tiers between it and the device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.store import Store
from inference.models.load import Model, load
from tests.inference.lora.shelf import CPU, Shelf


@pytest.fixture(scope="module")
def stocked(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Model, list[str]]:
    base = workshop.base("qwen2")
    store = Store(f"file://{tmp_path_factory.mktemp('tiers')}/store")
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    adapters = [workshop.uploadable(workshop.adapter(base, f"tier-{n}", **config)) for n in range(4)]
    return store.url, load(str(base.folder), CPU, torch.float32, 4), [store.put(adapter).digest for adapter in adapters]


@pytest.fixture
def shelf(stocked: tuple[str, Model, list[str]], tmp_path: Path) -> Iterator[Shelf]:
    store, model, digests = stocked
    shelf = Shelf(store, tmp_path / "cache", model, digests)
    yield shelf
    shelf.store.slowly.clear()
