"""Adapters on a mixture's experts and routers: tokens and logits are PEFT's for each request alone, in float32."""

from typing import Any

import pytest

from tests.inference.conftest import MIXTURES
from tests.inference.test_variants import compare

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
USUAL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
ROUTERS = {"granitemoe": "router.weight"}


def variants(architecture: str) -> dict[str, dict[str, Any]]:
    """LoraConfigs by name; one of them leaves the experts alone."""
    router = ROUTERS.get(architecture, "gate.weight")
    return {
        "attention": {"r": 4, "target_modules": ["q_proj", "o_proj"]},
        "usual": {"r": 4, "target_modules": ["w1", "w2", "w3", "v_proj"] if architecture == "mixtral" else USUAL},
        "experts": {"r": 5, "lora_alpha": 16, "target_modules": [], "target_parameters": EXPERTS, "use_rslora": True},
        "down": {"r": 3, "target_modules": ["k_proj"], "target_parameters": ["experts.down_proj"]},
        "up": {"r": 2, "target_modules": [], "target_parameters": ["layers.1.mlp.experts.gate_up_proj", *EXPERTS[:1]]},
        "router": {"r": 4, "target_modules": ["v_proj"], "target_parameters": [router, *EXPERTS]},
        "patterns": {
            "r": 4,
            "target_modules": ["q_proj"],
            "target_parameters": EXPERTS,
            "rank_pattern": {r"layers\.1\..*down_proj": 7, "experts.gate_up_proj": 2},
            "alpha_pattern": {"down_proj": 3},
        },
    }


def made(workshop: Any, base: Any, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"mix-{name}": workshop.adapter(base, f"mix-{name}", **config) for name, config in configs.items()}


@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_and_routers_in_one_batch_with_other_rows_answer_as_peft_does(workshop: Any, architecture: str) -> None:
    base = workshop.base(architecture)
    adapters = made(workshop, base, variants(architecture))
    driver = compare(workshop, base, adapters)
    assert max(driver.engine.steps_by_adapters) == len(adapters), "no step held rows of all adapters"
