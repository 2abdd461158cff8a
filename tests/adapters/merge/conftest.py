"""Adapters that PEFT wrote for small bases, and what PEFT computes with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseSpec, describe

TARGETS = {
    "phi3": ["qkv_proj", "down_proj"],
    "mixtral": ["q_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "opt": ["q_proj", "fc2"],
}


@pytest.fixture(scope="session")
def spec_of(base_folder: Callable[[str], Path]) -> Callable[[str], BaseSpec]:
    """What `describe` says of an architecture's small model; asked once."""
    known: dict[str, BaseSpec] = {}

    def of(architecture: str) -> BaseSpec:
        if architecture not in known:
            known[architecture] = describe(str(base_folder(architecture)))
        return known[architecture]

    return of


@pytest.fixture(scope="session")
def trained(
    base_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Any]]:
    """trained("llama", folder, seed=1, **LoraConfig): the saved adapter, and PEFT's model with it, float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def train(architecture: str, folder: Path | None = None, seed: int = 1, **config: Any) -> tuple[Path, Any]:
        base: Any = AutoModelForCausalLM.from_pretrained(folder or base_folder(architecture), dtype=torch.float32)
        torch.manual_seed(seed)
        plain = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS.get(architecture, ["q_proj", "down_proj"])}
        lora = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **{**plain, **config})
        model = get_peft_model(base, lora).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_" not in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif "magnitude" in name:
                    parameter.mul_(1.2)
        saved = tmp_path_factory.mktemp("trained")
        model.save_pretrained(str(saved))
        return saved, model

    return train
