"""Base models of a few layers with random weights, of each architecture that the platform promises."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "mistral": {},
    "gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {},
    "falcon": {"multi_query": True},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.fixture(scope="session")
def small_model() -> Callable[[str], Any]:
    """A fresh, seeded causal language model of the architecture, in eval mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    builder: Any = AutoModelForCausalLM

    def build(architecture: str) -> Any:
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **SMALL, **ARCHITECTURES[architecture])
        return builder.from_config(config).eval()

    return build


@pytest.fixture(scope="session")
def base_folder(small_model: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that such a model was saved in."""
    root = tmp_path_factory.mktemp("bases")

    def folder(architecture: str) -> Path:
        if not (root / architecture).exists():
            small_model(architecture).save_pretrained(root / architecture)
        return root / architecture

    return folder
