"""Everything that PEFT trains, in one batch with base rows: tokens and logits are PEFT's for each request alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.conftest import distance

TOKENS = 6
LENGTHS = (2, 17, 61)  # the last is prefilled in chunks: a step takes 48 tokens

ATTENTION = {"phi3": ("qkv_proj", "o_proj")}
MLP = {
    "phi3": ["gate_up_proj", "down_proj"],
    "mixtral": [],
    "qwen2_moe": ["shared_expert.up_proj", "shared_expert_gate"],
    "starcoder2": ["c_fc", "c_proj"],
}


def variants(architecture: str) -> dict[str, dict[str, Any]]:
    """LoraConfigs by name. Mixtures: whatever isn't one of their experts."""
    first, last = ATTENTION.get(architecture, ("q_proj", "o_proj"))
    attention, mlp = [first, last], MLP.get(architecture, ["gate_proj", "up_proj", "down_proj"])
    whole = ["layers.1.self_attn"] if architecture in ("mixtral", "qwen2_moe") else ["layers.1.mlp"]
    return {
        "embedding": {"r": 4, "target_modules": [first, "embed_tokens"]},
        "head": {"r": 4, "target_modules": [last, "lm_head"], "use_rslora": True},
        "dora": {"r": 4, "target_modules": attention + mlp, "use_dora": True, "rank_pattern": {last: 7}},
        "dora-everywhere": {"r": 2, "target_modules": [last, "embed_tokens", "lm_head"], "use_dora": True},
        "lora-bias": {"r": 4, "target_modules": attention, "lora_bias": True},
        "bias-all": {"r": 4, "target_modules": [first], "bias": "all"},
        "bias-lora-only": {"r": 4, "target_modules": attention, "bias": "lora_only", "use_dora": True},
        "saved-ends": {"r": 4, "target_modules": [last], "modules_to_save": ["embed_tokens", "lm_head"]},
        "saved-inside": {
            "r": 4,
            "target_modules": [first],
            "modules_to_save": [*whole, "model.norm", "layers.0.input_layernorm"],
        },
        "one-layer": {"r": 4, "target_modules": [first], "layers_to_transform": [1]},
        "regex": {"r": 4, "target_modules": rf".*\.[02]\.self_attn\.({first}|{last})"},
        "rank-1": {"r": 1, "target_modules": [last]},
        "rank-256": {"r": 256, "target_modules": attention, "lora_alpha": 64},
    }


def made(workshop: Any, base: Any, configs: Mapping[str, dict[str, Any]]) -> dict[str, Path]:
    return {name: workshop.adapter(base, name, **{"lora_alpha": 8, **config}) for name, config in configs.items()}


def compare(workshop: Any, base: Any, adapters: Mapping[str, Path], **engine: Any) -> Any:
    """Ask base and adapters for each prompt in one batch; fail where any answer isn't PEFT's."""
    prompts = [workshop.prompt(length) for length in LENGTHS]
    driver = workshop.engine(base, adapters, **{"slots": len(adapters), "blocks": 600, "rows": 64, **engine})
    asked: dict[str, list[Any]] = {name: [] for name in ("", *adapters)}
    for prompt in prompts:
        for name, sequences in asked.items():
            sequences.append(driver.submit(prompt, name, max_tokens=TOKENS))
    driver.run()
    told_apart = set()
    for name, sequences in asked.items():
        expected, logits = base.answers_and_logits(adapters.get(name), prompts, TOKENS)
        assert [driver.tokens(sequence) for sequence in sequences] == expected, name or "base"
        for sequence, theirs in zip(sequences, logits, strict=True):
            apart = distance(driver.logits(sequence), theirs)
            assert apart < 1e-4, (name or "base", apart)
        told_apart.add(str(logits[0].tolist()))
    assert len(told_apart) == 1 + len(adapters), "some adapters change nothing, so they were not tested"
    return driver


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "mixtral", "qwen2_moe", "starcoder2"]
)
def test_every_variant_in_one_batch_answers_as_peft_does(workshop: Any, architecture: str) -> None:
    base = workshop.base(architecture)
    configs = variants(architecture)
    biased = architecture in ("qwen2", "qwen2_moe", "starcoder2")
    configs = {name: config for name, config in configs.items() if biased or name != "bias-all"}
    driver = compare(workshop, base, made(workshop, base, configs))
    assert max(driver.engine.steps_by_adapters) == len(configs), "no step held rows of all adapters"


def test_weights_that_are_kept_transposed_are_served_in_every_variant(workshop: Any) -> None:
    """GPT-2's Conv1D (fan_in_fan_out), whose head is its embedding."""
    base = workshop.base("gpt2")
    attention = ["c_attn", "c_proj"]
    configs: dict[str, dict[str, Any]] = {
        "plain": {"r": 8, "target_modules": [*attention, "c_fc"], "fan_in_fan_out": True},
        "unsaid": {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": False},
        "all-linear": {"r": 4, "target_modules": "all-linear", "use_rslora": True},
        "dora": {"r": 4, "target_modules": [*attention, "lm_head"], "use_dora": True, "rank_pattern": {"c_attn": 7}},
        "lora-bias": {"r": 4, "target_modules": attention, "lora_bias": True},
        "bias-all": {"r": 4, "target_modules": ["c_fc"], "bias": "all"},
        "bias-lora-only": {"r": 4, "target_modules": attention, "bias": "lora_only", "use_dora": True},
        "embeddings": {"r": 4, "target_modules": ["c_attn", "wte", "wpe"]},
        "saved-ends": {"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]},
        "saved-inside": {"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["h.1.mlp", "ln_f", "h.0.ln_1"]},
        "saved-attention": {"r": 4, "target_modules": ["c_fc"], "modules_to_save": ["h.2.attn"]},
    }
    compare(workshop, base, made(workshop, base, configs))


def test_a_tied_base_is_untied_or_stays_tied_as_peft_does_it(workshop: Any) -> None:
    base = workshop.base("llama", tie_word_embeddings=True)
    ends, adapters = ["embed_tokens", "q_proj"], variants("llama")
    configs = {name: adapters[name] for name in ("embedding", "head", "dora-everywhere", "saved-ends")} | {
        "tied-embedding": {"r": 4, "target_modules": ends, "ensure_weight_tying": True},
        "tied-regex": {"r": 4, "target_modules": r".*(embed_tokens|v_proj)", "ensure_weight_tying": True},
        "tied-saved": {
            "r": 4,
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
        "saved-embedding": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        "saved-head": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    }
    compare(workshop, base, made(workshop, base, configs))


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_that_were_saved_beside_the_adapter_are_served(workshop: Any, tied: bool) -> None:
    base = workshop.base("llama", tie_word_embeddings=tied)
    adapters = {
        "untargeted": workshop.with_base_weights(base, "untargeted", r=4, target_modules=["q_proj"]),
        "targeted": workshop.with_base_weights(base, "targeted", r=4, target_modules=["q_proj", "embed_tokens"]),
        "dora": workshop.with_base_weights(base, "d", r=4, target_modules=["embed_tokens", "lm_head"], use_dora=True),
    }
    compare(workshop, base, adapters)


def test_what_peft_converts_to_plain_lora_is_served(workshop: Any) -> None:
    base = workshop.base("llama")
    target = ["q_proj", "down_proj"]
    adapters = {
        "pissa": workshop.converted(base, "pissa", r=4, target_modules=target),
        "olora": workshop.converted(base, "olora", r=4, target_modules=target, use_rslora=True),
        "corda": workshop.converted(base, "corda", r=4, target_modules=target),
        "gaussian": workshop.adapter(base, "gaussian", r=4, target_modules=target, init_lora_weights="gaussian"),
        "orthogonal": workshop.adapter(base, "orthogonal", r=4, target_modules=target, init_lora_weights="orthogonal"),
        "eva": workshop.adapter(base, "eva", r=4, target_modules=target, init_lora_weights="eva"),
    }
    compare(workshop, base, adapters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_variants_in_narrow_dtypes_are_widened_as_peft_does(workshop: Any, dtype: torch.dtype) -> None:
    base = workshop.base("qwen2")
    configs = variants("qwen2")
    adapters = {
        name: workshop.adapter(base, f"{name}-{dtype}", dtype, **{"lora_alpha": 8, **configs[name]})
        for name in ("dora-everywhere", "saved-ends", "saved-inside", "lora-bias", "bias-all")
    }
    compare(workshop, base, adapters)


def test_variants_stay_exact_through_prefix_hits_preemption_and_eviction(workshop: Any) -> None:
    base = workshop.base("qwen2")
    names = ("embedding", "head", "dora", "saved-ends", "saved-inside", "bias-all", "rank-256")
    adapters = made(workshop, base, {name: variants("qwen2")[name] for name in names})
    prompts = [workshop.prompt(33) + workshop.prompt(length, seed=1) for length in (3, 9)]
    driver = workshop.engine(base, adapters, slots=2, blocks=10, patience=0.0)
    expected = {name: base.answers(adapters.get(name), prompts, 40) for name in ("", *names)}

    for _ in range(2):
        asked = {name: [driver.submit(p, name, max_tokens=40) for p in prompts] for name in ("", *names)}
        driver.run()
        for name, sequences in asked.items():
            assert [driver.tokens(sequence) for sequence in sequences] == expected[name], name or "base"

    assert driver.scheduler.preemptions > 0
    assert driver.slots.tally.evictions > 0
    assert any(sequence.cached for sequence in driver.begun())


@pytest.mark.parametrize("variant", ["embedding", "dora-everywhere", "bias-all", "saved-ends", "saved-inside"])
def test_a_slot_keeps_nothing_of_the_adapter_before(workshop: Any, variant: str) -> None:
    base = workshop.base("qwen2")
    configs = variants("qwen2")
    adapters = made(workshop, base, {variant: configs[variant], "regex": configs["regex"], "dora": configs["dora"]})
    prompts = [workshop.prompt(9)]
    driver = workshop.engine(base, adapters, slots=1)
    for name in (variant, "regex", variant, "dora", variant, "", "dora", ""):
        assert [driver.answer(prompts[0], name, max_tokens=4)] == base.answers(adapters.get(name), prompts, 4), name
        driver.engine.ask(lambda name=name: driver.slots.evict(name))
        driver.run()
    for module in driver.model.network.modules():
        assert not getattr(module, "corrections", None)
        assert not getattr(module, "pairs", None)
        assert not module._forward_hooks or module is driver.model.network
