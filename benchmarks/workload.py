"""The reference workload of design section 8: its model and adapters, medians, and the machine's own rates."""

import shutil
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

PROMPT = 64  # tokens
RANK = 16
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WEIGHTS = "adapter_model.safetensors"
SHAPE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def make_model(folder: Path, layers: int, dtype: torch.dtype = torch.float32) -> Path:
    """The reference model's shape with random weights, rounded to `dtype` and saved in it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", **{**SHAPE, "num_hidden_layers": layers})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.to(dtype).save_pretrained(folder)
    return folder


def narrowed(folders: list[Path], into: Path) -> list[Path]:
    """The same adapters in bfloat16."""
    made = []
    for folder in folders:
        made.append(into / folder.name)
        made[-1].mkdir(parents=True)
        shutil.copy(folder / "adapter_config.json", made[-1])
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, made[-1] / WEIGHTS, metadata={"format": "pt"})
    return made


def medians(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Candidates take turns; the median of each."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            taken[name].append(run())
    return {name: statistics.median(times) for name, times in taken.items()}


def gaps(times: list[float]) -> float:
    """The median of what lies between moments."""
    return statistics.median(later - earlier for earlier, later in pairwise(times))


def reading() -> float:
    """Bytes a second that all threads read from memory."""
    numbers = torch.ones(1 << 27)
    return numbers.nbytes / min(timed(numbers.sum) for _ in range(5))


def multiplying() -> float:
    """Multiply-adds a second of a large GEMM."""
    side = torch.randn(2048, 2048)
    return 2048**3 / statistics.median(timed(lambda: side @ side) for _ in range(5))


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
