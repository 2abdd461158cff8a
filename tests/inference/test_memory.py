"""What memory allows, and who gets how much of it."""

import os
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inference import memory
from inference.lora.weights import read
from inference.models.load import Model, load

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(workshop: Any) -> Model:
    return load(str(workshop.base("qwen2").folder), CPU, torch.float32, 2)


def options(folder: Path, **given: int) -> Namespace:
    asked = {"arena": 0, "host_memory": 0, "disk_cache": 0, "kv_tokens": 0, "slots": 4} | given
    return Namespace(cache=folder, **asked)


@pytest.mark.parametrize(
    ("text", "size"), [("100000", 100_000), ("512M", 512 << 20), ("2GiB", 2 << 30), ("1.5 g", 3 << 29), ("7kb", 7168)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert memory.size(text) == size


@pytest.mark.parametrize("text", ["", "plenty", "-5M", "5X", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        memory.size(text)


def test_a_container_s_limit_counts_and_files_in_its_cache_are_free(tmp_path: Path) -> None:
    assert memory.cgroup_room(tmp_path) is None
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 50\nactive_file 9\n")
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.cgroup_room(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.cgroup_room(tmp_path) == 750


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000")
    (folder / "memory.usage_in_bytes").write_text("990")
    (folder / "memory.stat").write_text("cache 3\ntotal_inactive_file 40\n")
    assert memory.cgroup_room(tmp_path) == 50


def test_the_kv_cache_is_made_of_what_weights_and_adapters_leave(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 8 << 20)
    plain = memory.shares(model, 16, options(tmp_path, arena=1 << 20, host_memory=1 << 20))
    squeezed = memory.shares(model, 16, options(tmp_path, arena=4 << 20, host_memory=1 << 20))
    per_block = 16 * model.cache.numbers_per_token * 4
    assert plain.blocks == (6 << 20) * memory.KV_SHARE // per_block
    assert squeezed.blocks == plain.blocks // 2


def test_what_is_asked_for_and_not_there_stops_the_start_by_name(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--arena"):
        memory.shares(model, 16, options(tmp_path, arena=1 << 60))


def test_what_another_engine_takes_away_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, scan = tmp_path / "cache", os.scandir
    for name in ("here", "gone"):
        (cache / name).mkdir(parents=True)
        (cache / name / "file").write_bytes(b"x" * 1000)
    (cache / "here" / "gone").symlink_to("nowhere")

    def take_away(path: Any) -> Any:
        if Path(path) == cache / "gone":
            (cache / "gone").rename(tmp_path / "away")
        return scan(path)

    monkeypatch.setattr(os, "scandir", take_away)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Namespace(free=0))
    assert memory.spare_disk(cache) == 1000 * memory.DISK_SHARE


def test_without_options_every_slot_has_room_for_rank_16_and_one_adapter_for_the_widest(
    model: Model, tmp_path: Path
) -> None:
    arena = memory.shares(model, 16, options(tmp_path)).arena
    per_rank = sum(sum(shape) for shape in model.spec.linears.values()) * 4
    assert arena >= per_rank * max(4 * memory.RANK, memory.WIDEST)
    assert memory.shares(model, 16, options(tmp_path, kv_tokens=1000)).blocks == 62


def test_a_slots_share_is_made_for_an_adapter_of_all_experts(workshop: Any) -> None:
    """Of the rank that shares are made for, which gate and up, joined, have for both together."""
    base = workshop.base("qwen3_moe")
    half = memory.RANK // 2
    adapter = workshop.adapter(
        base,
        "mix-wide",
        r=half,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    of_mixture = load(str(base.folder), CPU, torch.float32, 2)
    weights = read(adapter, of_mixture.spec, CPU, of_mixture.sites.frozen)
    many = 1 << 10
    assert weights.nbytes < memory.expected(of_mixture.spec, many, torch.float32) / many
    bare = replace(of_mixture.spec, experts={})
    assert weights.nbytes > memory.expected(bare, many, torch.float32) / many
