"""PEFT makes adapters for real models; what is read from their files must be what PEFT computes with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.base import describe
from adapters.errors import Rejected
from adapters.files import CONFIG, WEIGHTS
from adapters.header import read_header
from adapters.peft import Layout, layout, read_config
from adapters.validation import validate

ATTENTION = {"phi3": ["qkv_proj", "o_proj"]}
MLP = {"phi3": ["gate_up_proj", "down_proj"]}


def attention(architecture: str) -> list[str]:
    return ATTENTION.get(architecture, ["q_proj", "k_proj", "v_proj", "o_proj"])


def mlp(architecture: str) -> list[str]:
    return MLP.get(architecture, ["gate_proj", "up_proj", "down_proj"])


CONFIGS: dict[str, Callable[[str], dict[str, Any]]] = {
    "list": lambda name: {"target_modules": attention(name) + mlp(name)},
    "full-names": lambda name: {"target_modules": [f"model.layers.1.self_attn.{attention(name)[0]}", mlp(name)[-1]]},
    "regex": lambda name: {"target_modules": rf".*layers\.\d+\.(self_attn\.{attention(name)[0]}|mlp\.{mlp(name)[0]})"},
    "all-linear": lambda name: {"target_modules": "all-linear"},
    "excluded": lambda name: {"target_modules": "all-linear", "exclude_modules": [mlp(name)[-1]]},
    "layers": lambda name: {"target_modules": mlp(name), "layers_to_transform": [1], "layers_pattern": "layers"},
    "rank-pattern": lambda name: {
        "target_modules": attention(name) + mlp(name),
        "rank_pattern": {mlp(name)[0]: 2, r"layers\.1\.self_attn\..*": 7, "^model.layers.0.mlp.down_proj": 3},
    },
    "alpha-pattern": lambda name: {
        "target_modules": attention(name),
        "alpha_pattern": {"o_proj": 3, r".*layers\.0\..*": 5},
        "rank_pattern": {"o_proj": 5},
    },
    "rslora": lambda name: {"target_modules": mlp(name), "use_rslora": True, "rank_pattern": {"down_proj": 9}},
    "rslora-patterns": lambda name: {
        "target_modules": "all-linear",
        "use_rslora": True,
        "rank_pattern": {"layers.0.mlp.down_proj": 1},
        "alpha_pattern": {"down_proj": 11, "o_proj": 2},
    },
    "orthogonal": lambda name: {"target_modules": attention(name), "init_lora_weights": "orthogonal"},
}


def trained(model: Any, folder: Path, **options: Any) -> Any:
    """A PEFT model whose LoRA weights are random and of the model's dtype, saved in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **options})
    made = get_peft_model(model, config, autocast_adapter_dtype=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    made.save_pretrained(str(folder))
    return made


def laid(folder: Path, base: Path) -> Layout:
    return layout(read_config(folder / CONFIG), read_header(folder / WEIGHTS), describe(str(base)))


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_pair_is_the_change_that_peft_makes(
    name: str,
    architecture: str,
    tmp_path: Path,
    small_model: Callable[[str], Any],
    base_folder: Callable[[str], Path],
) -> None:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    trained(small_model(architecture), tmp_path, **CONFIGS[name](architecture))
    loaded = PeftModel.from_pretrained(small_model(architecture), tmp_path)
    theirs = {n: m for n, m in loaded.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    merged = {n: m.weight for n, m in loaded.merge_and_unload(safe_merge=True).named_modules() if n in theirs}
    weights, untouched = load_file(tmp_path / WEIGHTS), dict(small_model(architecture).named_modules())

    ours = laid(tmp_path, base_folder(architecture)).linears

    assert {pair.module for pair in ours} == theirs.keys()
    for pair in ours:
        a, b = weights[pair.a], weights[pair.b]
        assert (tuple(a.shape), tuple(b.shape)) == ((pair.rank, pair.inputs), (pair.outputs, pair.rank))
        assert pair.scale == theirs[pair.module].scaling["default"]
        ours_merged = untouched[pair.module].weight + pair.scale * (b @ a)
        torch.testing.assert_close(ours_merged, merged[pair.module], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "mixtral"])
@pytest.mark.parametrize(("dtype", "stored"), [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_what_peft_saves_is_valid_as_it_is(
    architecture: str,
    dtype: str,
    stored: str,
    tmp_path: Path,
    small_model: Callable[[str], Any],
    base_folder: Callable[[str], Path],
) -> None:
    import torch

    model = small_model(architecture).to(getattr(torch, dtype))
    saved = trained(model, tmp_path, target_modules=attention(architecture))
    summary = validate(tmp_path, describe(str(base_folder(architecture))))
    assert (tmp_path / "README.md").exists()
    assert summary.modules == len(saved.base_model.targeted_module_names)
    assert summary.targets == tuple(sorted(attention(architecture)))
    assert (summary.rank_min, summary.rank_max, summary.dtype) == (4, 4, stored)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"use_dora": True}),
        ("llama", {"lora_bias": True}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"modules_to_save": ["embed_tokens", "lm_head"], "use_dora": True}),
        ("llama", {"modules_to_save": ["norm"]}),
        ("llama", {"modules_to_save": ["layers.1.mlp"]}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("gemma", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
        ("gemma", {"target_modules": r".*(q_proj|lm_head)", "ensure_weight_tying": True}),
        ("gemma", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        ("gemma", {"modules_to_save": ["lm_head"]}),
        ("gemma", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("qwen2", {"bias": "all"}),
        ("qwen2", {"bias": "lora_only"}),
        ("mixtral", {"target_modules": ["q_proj", "o_proj"], "use_dora": True}),
    ],
    ids=str,
)
def test_every_variant_that_peft_saves_is_valid_as_it_is(
    architecture: str,
    options: dict[str, Any],
    tmp_path: Path,
    small_model: Callable[[str], Any],
    base_folder: Callable[[str], Path],
) -> None:
    from safetensors import safe_open

    trained(small_model(architecture), tmp_path, **{"target_modules": ["q_proj"], **options})
    validate(tmp_path, describe(str(base_folder(architecture))))
    laid_out = laid(tmp_path, base_folder(architecture))
    used = {name for pair in laid_out.linears + laid_out.embeddings for name in (pair.a, pair.b)}
    used |= {name for pair in laid_out.linears + laid_out.embeddings for name in (pair.bias, pair.magnitude) if name}
    used |= {replaced.tensor for replaced in laid_out.replaced}
    with safe_open(tmp_path / WEIGHTS, "np") as saved:
        left_out = set(saved.keys()) - used
        if left_out:  # a tied weight, saved once more under the embedding's name
            twice = saved.get_tensor("base_model.model.lm_head.base_layer.weight")
            assert left_out == {"base_model.model.model.embed_tokens.base_layer.weight"}
            assert (saved.get_tensor(left_out.pop()) == twice).all()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"layer_replication": [(0, 2), (1, 2)]}, "unsupported-layer-replication"),
        ({"init_lora_weights": "pissa"}, "unconverted-init"),
        ({"init_lora_weights": "olora"}, "unconverted-init"),
        ({"modules_to_save": ["rotary_emb"]}, "unmatched-module"),
    ],
    ids=str,
)
def test_what_peft_can_train_and_the_engine_cannot_serve_is_refused_by_name(
    options: dict[str, Any],
    rule: str,
    tmp_path: Path,
    small_model: Callable[[str], Any],
    base_folder: Callable[[str], Path],
) -> None:
    trained(small_model("llama"), tmp_path, **{"target_modules": ["q_proj"], **options})
    with pytest.raises(Rejected) as refusal:
        validate(tmp_path, describe(str(base_folder("llama"))))
    assert rule in refusal.value.rules


@pytest.mark.parametrize("peft_type", ["IA3", "LOHA", "VERA", "PROMPT_TUNING"])
def test_other_methods_of_peft_are_refused_by_name(
    peft_type: str, tmp_path: Path, small_model: Callable[[str], Any], base_folder: Callable[[str], Path]
) -> None:
    import peft

    configs: dict[str, Any] = {
        "IA3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        "LOHA": peft.LoHaConfig(target_modules=["q_proj"]),
        "VERA": peft.VeraConfig(target_modules=["q_proj"]),
        "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    }
    peft.get_peft_model(small_model("llama"), configs[peft_type]).save_pretrained(tmp_path)
    with pytest.raises(Rejected) as refusal:
        validate(tmp_path, describe(str(base_folder("llama"))))
    assert refusal.value.rules == ("unsupported-peft-type",)


def test_an_adapter_for_another_architecture_is_refused_with_the_modules_names(
    tmp_path: Path, small_model: Callable[[str], Any], base_folder: Callable[[str], Path]
) -> None:
    trained(small_model("phi3"), tmp_path, target_modules=["qkv_proj"])
    with pytest.raises(Rejected) as refusal:
        validate(tmp_path, describe(str(base_folder("llama"))))
    assert refusal.value.rules[0] == "wrong-base-model"
    assert "layers 0-1: self_attn.qkv_proj" in str(refusal.value)
