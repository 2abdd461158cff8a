"""Knows how much memory there is and how it is shared out; never what is kept in it.

After the weights come the adapters (the arena, and on the host what lets a re-load skip the disk), then the KV cache.
"""

import argparse
import logging
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from adapters.base import BaseSpec, routed
from inference.models.load import Model

log = logging.getLogger(__name__)

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
CGROUP = Path("/sys/fs/cgroup")
RANK = 16  # that a slot's share of the arena is made for
WIDEST = 256  # rank that fits at all
ADAPTERS_SHARE = 0.25  # of the free memory, at most
HOST_SHARE = 0.1
KV_SHARE = 0.25  # of what is left on a CPU; the rest is the other processes'
CUDA_KV_SHARE = 0.85  # the rest is what a step computes with
CONTEXTS = 64  # that the KV cache holds at most
DISK_SHARE = 0.5
DISK_MOST = 50 << 30


@dataclass(frozen=True)
class Shares:
    """Bytes for the arena, the host tier and the disk cache; blocks for the KV cache."""

    arena: int
    host: int
    disk: int
    blocks: int


def shares(model: Model, block: int, arguments: argparse.Namespace) -> Shares:
    """What the options say, and for each that is 0 what memory allows, now that the weights are there."""
    device, host = available(model.device), available(torch.device("cpu"))
    arena = arguments.arena or min(expected(model.spec, arguments.slots, model.dtype), int(device * ADAPTERS_SHARE))
    kept = arguments.host_memory or int(host * HOST_SHARE)
    taken = arena if model.device.type == "cuda" else arena + kept
    if taken > device:
        raise ValueError(f"--arena and --host-memory: {taken >> 20} MiB are asked for, {device >> 20} MiB are free")
    blocks = kv_blocks(model, device - taken, block, arguments.kv_tokens)
    return Shares(arena, kept, arguments.disk_cache or spare_disk(arguments.cache), blocks)


def expected(spec: BaseSpec, slots: int, dtype: torch.dtype) -> int:
    """Bytes for every slot to have an adapter of RANK on all linears and experts, or one to be of WIDEST; and retrained
    embeddings.

    Adapters are float32 where the base is, as PEFT saves them; a narrower base's are mostly narrow too.
    """
    sizes = [outputs + inputs for name, (outputs, inputs) in spec.linears.items() if not routed(name)]
    sizes += [each.experts * (each.outputs + each.inputs) for each in spec.experts.values()]
    tables = 2 * spec.vocab_size * spec.hidden_size
    return (sum(sizes) * max(slots * RANK, WIDEST) + tables) * torch.empty((), dtype=dtype).element_size()


def kv_blocks(model: Model, left: int, block: int, tokens: int = 0) -> int:
    """Blocks of the KV cache: for `tokens` tokens; 0: for a share of the bytes `left`, at most CONTEXTS contexts."""
    if not tokens:
        per_token = model.cache.numbers_per_token * torch.empty((), dtype=model.dtype).element_size()
        share = CUDA_KV_SHARE if model.device.type == "cuda" else KV_SHARE
        tokens = min(int(left * share) // per_token, CONTEXTS * model.spec.context_length)
        if tokens < model.spec.context_length:
            log.warning("memory for %d tokens of KV cache: less than one full context", tokens)
    return max(1, tokens // block)


def available(device: torch.device) -> int:
    """Free bytes: of the device, or of the host and the control group that this process is in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    room = cgroup_room(CGROUP)
    return free if room is None else min(free, room)


def cgroup_room(root: Path) -> int | None:
    """What a container's limit leaves, cached files that can be given up included; None without one (v1 and v2)."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
            files = re.search(r"^(?:total_)?inactive_file (\d+)$", (root / stat).read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return max(0, most - now + (int(files[1]) if files else 0))
    return None


def spare_disk(folder: Path) -> int:
    """A share of what is free where the cache is, its own files counted as free."""
    folder.mkdir(parents=True, exist_ok=True)
    own = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another engine may share the folder
                own += Path(parent, name).stat().st_size
    return min(int((shutil.disk_usage(folder).free + own) * DISK_SHARE), DISK_MOST)


def size(text: str) -> int:
    """Bytes: "512M", "2GiB", "1.5g", "100000". Raises ValueError, which argparse tells."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    if not found:
        raise ValueError(f"{text!r} is no size")
    return int(float(found[1]) * UNITS[found[2]])
