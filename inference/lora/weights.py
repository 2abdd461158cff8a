"""Knows how an adapter's files become tensors on the device; never slots, requests or where the files came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from adapters.base import BaseSpec
from adapters.header import read_header
from adapters.peft import pairs, read_config


@dataclass(frozen=True)
class AdapterWeights:
    """By module path, A [rank, in], B [out, rank] and the scale; views into one buffer of `nbytes` on the device."""

    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    nbytes: int


def read(folder: Path, base: BaseSpec, device: torch.device, dtype: torch.dtype | None = None) -> AdapterWeights:
    """An adapter's tensors in their own dtype, or in `dtype`. Raises Rejected if they don't fit `base`."""
    file = folder / "adapter_model.safetensors"
    layout = pairs(read_config(folder / "adapter_config.json"), read_header(file), base)
    with safe_open(file, framework="pt") as tensors:
        parts = [tensors.get_tensor(name) for pair in layout for name in (pair.a, pair.b)]
    dtypes = {part.dtype for part in parts} if dtype is None else {dtype}
    kept = dtypes.pop() if len(dtypes) == 1 else torch.float32
    buffer = torch.cat([part.to(kept).reshape(-1) for part in parts]).to(device)
    views = iter(torch.split(buffer, [part.numel() for part in parts]))
    placed = {
        pair.module: (next(views).view(pair.rank, -1), next(views).view(-1, pair.rank), pair.scale) for pair in layout
    }
    return AdapterWeights(placed, buffer.numel() * buffer.element_size())
