"""Tensors' names of earlier Transformers become what PEFT makes of them, for every kind that Transformers renames."""

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

from adapters.base import BaseSpec
from adapters.renaming import Renaming, loaded, renamings
from tests.adapters.builders import BASE

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "depth": 1, "num_heads": 2, "out_hidden_size": 32,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
MODELS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT, "vision_config": VISION},
    "qwen2_5_vl": {"text_config": {**TEXT, **ROPE}, "vision_config": VISION},
    "mistral3": {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 16},
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    },
    "llama": TEXT,
    "mixtral": {**TEXT, "num_local_experts": 2},
}
PREFIXES = (
    "", "model.", "language_model.", "language_model.model.", "model.language_model.", "model.language_model.model.",
    "language_model.model.model.", "text_model.", "base_model.model.", "visual.",
)  # fmt: skip
MODULES = ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "layers.0.block_sparse_moe.gate", "lm_head", "lm")
PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_embedding_A", "weight")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    config: Any = transformers.AutoConfig.for_model(request.param, **MODELS[request.param])
    kinds: list[Any] = [transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText]
    kind = next(kind for kind in kinds if type(config) in kind._model_mapping)
    with torch.device("meta"):
        return kind.from_config(config)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_name_becomes_what_peft_makes_of_it(model: Any, prefix: str) -> None:
    rules = renamings(model)
    for module in MODULES:
        for part in PARTS:
            name = f"base_model.model.{prefix}{module}.{part}"
            (theirs,) = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), {name: torch.zeros(1, 1)})
            assert loaded(name, rules) == theirs


def test_a_description_keeps_the_rules() -> None:
    rules = (Renaming(r"(?P<g0>^a\.(.+))", r"b.\1", ("m.", "")), Renaming("(?P<g0>x)", "y"))
    spec = BaseSpec.from_json({**BASE.to_json(), "renamings": [[p, t, list(s)] for p, t, s in rules]})
    assert spec.renamings == rules
    assert BaseSpec.from_json(spec.to_json()) == spec
    assert loaded("base_model.model.m.a.q.lora_A.weight", rules) == "base_model.model.m.b.q.lora_A.weight"
