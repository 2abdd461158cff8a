"""What of Transformers' modules is fused, and that a module which computes anything else is left alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from inference.models.fused import GatedMlp, Norm, RotaryAttention, fuse
from inference.models.load import load


def fused(network: nn.Module) -> set[str]:
    parts = (GatedMlp, Norm, RotaryAttention)
    return {part.__name__ for module in network.modules() for part in parts if isinstance(module, part)}


@pytest.mark.parametrize(
    ("architecture", "parts"),
    [
        ("llama", {"RotaryAttention", "GatedMlp", "Norm"}),
        ("qwen3", {"RotaryAttention", "GatedMlp", "Norm"}),
        ("gemma", {"GatedMlp", "Norm"}),
        ("phi3", {"Norm"}),
    ],
)
def test_the_parts_of_known_architectures_are_fused(workshop: Any, architecture: str, parts: set[str]) -> None:
    model = load(str(workshop.base(architecture).folder), torch.device("cpu"), torch.float32, 2)
    assert fused(model.network) == parts


class WrongRMSNorm(Qwen2RMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return 1.01 * super().forward(hidden_states)


def test_a_module_that_gives_anything_else_is_left_alone() -> None:
    network = nn.ModuleList([WrongRMSNorm(8), Qwen2RMSNorm(8)]).requires_grad_(False)
    with torch.inference_mode():
        assert fuse(network, lambda: None) == {"Norm": 1}
        x = torch.randn(1, 2, 8)
        torch.testing.assert_close(network[0](x), 1.01 * network[1](x))


def test_a_model_in_a_narrow_dtype_keeps_the_librarys_modules(workshop: Any) -> None:
    model = load(str(workshop.base("llama").folder), torch.device("cpu"), torch.bfloat16, 2)
    assert fused(model.network) == set()


def test_a_checkpoint_in_bfloat16_is_kept_narrow_and_computed_in_float32(workshop: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = workshop.base("llama").folder
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = load(str(tmp_path), torch.device("cpu"), torch.float32, 2)
    exact = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, parameter in exact.named_parameters():
        assert torch.equal(model.sites.frozen[name], parameter), name
    query: Any = model.network.get_submodule("model.layers.0.self_attn.q_proj")
    assert query.siblings.linears.parts[0][0].dtype is torch.bfloat16
