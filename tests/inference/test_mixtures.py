"""Adapters on a mixture's experts and routers: tokens and logits are PEFT's for each request alone, in float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inference.lora.experts import LoraExperts
from inference.lora.weights import read
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


def apart(base: Any, folder: Path, config: dict[str, Any]) -> Path:
    """An adapter as PEFT wrote it when every expert had linears of its own."""
    folder.mkdir()
    random, tensors = torch.Generator().manual_seed(7), {}
    names = ("w1", "w3", "w2") if base.folder.name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    block = "block_sparse_moe" if base.folder.name == "mixtral" else "mlp"
    for index, layer in enumerate(base.oracle(None).model.layers):
        experts, both, hidden = layer.mlp.experts.gate_up_proj.shape
        shapes = {name: (both // 2, hidden) for name in names[:2]} | {names[2]: (hidden, both // 2)}
        sides = {f"{block}.experts.{e}.{name}": shape for e in range(experts) for name, shape in shapes.items()}
        sides |= {"self_attn.q_proj": (hidden, hidden), f"{block}.gate": (experts, hidden)}
        for module, (outputs, inputs) in sides.items():
            name = f"base_model.model.model.layers.{index}.{module}"
            trained = index in config.get("layers_to_transform", (0, 1, 2))
            if trained and module.rpartition(".")[2] in config["target_modules"]:
                tensors[f"{name}.lora_A.weight"] = 0.1 * torch.randn(config["r"], inputs, generator=random)
                tensors[f"{name}.lora_B.weight"] = 0.1 * torch.randn(outputs, config["r"], generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM"} | config))
    return folder


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "olmoe"])
def test_what_was_trained_when_experts_were_linears_of_their_own_is_read_as_peft_reads_it(
    workshop: Any, architecture: str, tmp_path: Path
) -> None:
    base = workshop.base(architecture)
    own = ["w1", "w2", "w3"] if architecture == "mixtral" else ["gate_proj", "up_proj", "down_proj"]
    configs: dict[str, dict[str, Any]] = {
        "apart": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", *own]},
        "apart-router": {"r": 3, "lora_alpha": 8, "target_modules": [*own, "gate"], "use_rslora": True},
        "apart-down": {"r": 2, "lora_alpha": 8, "target_modules": own[1:2] if architecture == "mixtral" else own[2:]},
        "apart-layer": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", *own], "layers_to_transform": [1]},
    }
    adapters = {name: apart(base, tmp_path / name, config) for name, config in configs.items()}
    compare(workshop, base, adapters)


def test_dropout_changes_nothing_once_training_is_over(workshop: Any, tmp_path: Path) -> None:
    """PEFT itself takes pairs of separate experts with a dropout only when that is set to nothing."""
    base = workshop.base("qwen3_moe")
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}
    adapters = {"with": apart(base, tmp_path / "with", {**config, "lora_dropout": 0.1})}
    without = apart(base, tmp_path / "without", config)
    prompt = workshop.prompt(9)
    driver = workshop.engine(base, adapters)
    assert [driver.answer(prompt, "with")] == base.answers(without, [prompt], 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_pairs_are_widened_as_peft_does(workshop: Any, dtype: torch.dtype) -> None:
    base = workshop.base("qwen3_moe")
    configs = {name: variants("qwen3_moe")[name] for name in ("usual", "router")}
    compare(
        workshop,
        base,
        {name: workshop.adapter(base, f"mix-{name}-{dtype}", dtype, **config) for name, config in configs.items()},
    )


def test_a_retrained_router_is_served(workshop: Any) -> None:
    base = workshop.base("olmoe")
    config = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp.gate"]}
    compare(workshop, base, made(workshop, base, {"saved": config, "experts": variants("olmoe")["experts"]}))


def test_experts_stay_exact_through_prefix_hits_preemption_and_eviction(workshop: Any) -> None:
    base = workshop.base("qwen3_moe")
    adapters = made(workshop, base, variants("qwen3_moe"))
    prompts = [workshop.prompt(33) + workshop.prompt(length, seed=1) for length in (3, 9)]
    driver = workshop.engine(base, adapters, slots=2, blocks=10, patience=0.0)
    expected = {name: base.answers(adapters.get(name), prompts, 30) for name in ("", *adapters)}

    for _ in range(2):
        asked = {name: [driver.submit(p, name, max_tokens=30) for p in prompts] for name in ("", *adapters)}
        driver.run()
        for name, sequences in asked.items():
            assert [driver.tokens(sequence) for sequence in sequences] == expected[name], name or "base"

    assert driver.scheduler.preemptions > 0
    assert driver.slots.tally.evictions > 0
    assert any(sequence.cached for sequence in driver.begun())


def test_a_slot_keeps_nothing_of_a_mixtures_adapter(workshop: Any) -> None:
    base = workshop.base("qwen2_moe")
    adapters = made(workshop, base, {name: variants("qwen2_moe")[name] for name in ("router", "down", "attention")})
    prompts = [workshop.prompt(9)]
    driver = workshop.engine(base, adapters, slots=1)
    for name in ("mix-router", "mix-down", "mix-attention", "", "mix-router", ""):
        assert [driver.answer(prompts[0], name, max_tokens=4)] == base.answers(adapters.get(name), prompts, 4), name
        assert driver.model.sites.rare == ({0} if name in ("mix-router", "mix-down") else set())
        driver.engine.ask(lambda name=name: driver.slots.evict(name))
        driver.run()
    experts = [module for module in driver.model.network.modules() if isinstance(module, LoraExperts)]
    assert len(experts) == 3
    for module in experts:
        for parameter in ("gate_up_proj", "down_proj"):
            assert not module.table(parameter).any
            assert not any(module.table(parameter).pairs)
    assert not any(module._forward_hooks for module in experts)


def test_what_experts_take_is_counted_to_the_byte(workshop: Any) -> None:
    """Where the pairs lie together the file holds as much as the device; apart they are joined, zeros and all."""
    base = workshop.base("qwen3_moe")
    model = workshop.engine(base).model
    for name in ("experts", "up", "down"):
        (adapter,) = made(workshop, base, {name: variants("qwen3_moe")[name]}).values()
        weights = read(adapter, model.spec, model.device, model.sites.frozen)
        tensors = [
            tensor for pairs in (weights.experts, weights.pairs) for a, b, _ in pairs.values() for tensor in (a, b)
        ]
        assert weights.buffer is not None
        assert weights.nbytes == weights.buffer.nbytes
        assert 0 <= weights.nbytes - sum(tensor.nbytes for tensor in tensors) < 64 * len(tensors)
        assert len(weights.starts) == len(tensors)
