"""Siblings as a GPU computes them, one product and columns of one y, here on a CPU: answers stay PEFT's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference.kernels.linear import Joined, joinable
from inference.kernels.operands import ALIGNED
from inference.lora import sites
from inference.lora.linear import LoraLinear


def alike(linears: list[nn.Linear]) -> bool:
    """`joinable`, but for the device."""
    return len(linears) > 1 and all(linear.out_features % ALIGNED == 0 for linear in linears)


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(weight: Tensor) -> bool:
        return False

    monkeypatch.setattr(sites, "packable", refuse)
    monkeypatch.setattr(sites, "joinable", alike)


@pytest.mark.usefixtures("joins")
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma"])
def test_joined_siblings_answer_as_peft_does(workshop: Any, architecture: str) -> None:
    base = workshop.base(architecture)
    made = {
        "all": workshop.adapter(base, 2, r=16, lora_alpha=8, target_modules="all-linear"),
        "some": workshop.adapter(base, 1, r=4, lora_alpha=16, target_modules=["k_proj", "o_proj", "up_proj"]),
        "dora": workshop.adapter(base, "dora", r=4, lora_alpha=8, target_modules=["v_proj"], use_dora=True),
    }
    driver = workshop.engine(base, made)
    found = [module for module in driver.model.network.modules() if isinstance(module, LoraLinear)]
    joined = {module.siblings for module in found if module.siblings is not None}
    assert [type(siblings.linears) for siblings in joined] == [Joined] * 6, "q/k/v and gate/up of three layers"

    prompt = workshop.prompt(9)
    asked = {name: driver.submit(prompt, name) for name in ("", *made)}
    driver.run()
    for name, sequence in asked.items():
        assert [driver.tokens(sequence)] == base.answers(made.get(name), [prompt], 8), name or "base"


@pytest.mark.usefixtures("joins")
def test_the_bases_own_weights_are_found_in_what_joined_them(workshop: Any) -> None:
    base = workshop.base("llama")
    frozen = workshop.engine(base).model.sites.frozen
    for name, parameter in base.oracle(None).named_parameters():
        assert torch.equal(frozen[name], parameter), name


def test_on_a_cpu_nothing_is_joined() -> None:
    assert not joinable([nn.Linear(16, 16), nn.Linear(16, 32)])
