"""A base model is described from its config alone, and what is no base model says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseSpec, describe, is_linear
from adapters.errors import BaseModelMissing, BaseModelUnsupported

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "mixtral")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_description_is_the_loaded_model_s(
    architecture: str, base_folder: Callable[[str], Path], small_model: Callable[[str], Any]
) -> None:
    import torch

    spec, model = describe(str(base_folder(architecture))), small_model(architecture)
    modules = dict(model.named_modules())
    assert spec.linears == {n: tuple(m.weight.shape) for n, m in modules.items() if isinstance(m, torch.nn.Linear)}
    assert spec.embeddings == {
        n: tuple(m.weight.shape) for n, m in modules.items() if isinstance(m, torch.nn.Embedding)
    }
    assert spec.vectors == {n: len(p) for n, p in model.named_parameters() if p.dim() == 1}
    assert spec.architecture == type(model).__name__
    assert (spec.context_length, spec.vocab_size, spec.hidden_size) == (64, 96, 32)
    assert spec.head == "lm_head"
    assert spec.linears["lm_head"] == (96, 32)


@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", False), ("qwen2", True), ("gemma", True), ("phi3", False)]
)
def test_tied_embeddings_are_recorded(architecture: str, tied: bool, base_folder: Callable[[str], Path]) -> None:
    assert describe(str(base_folder(architecture))).tied is tied


def test_fused_layers_are_listed_by_the_names_they_have(base_folder: Callable[[str], Path]) -> None:
    linears = describe(str(base_folder("phi3"))).linears
    assert linears["model.layers.0.self_attn.qkv_proj"] == (64, 32)
    assert linears["model.layers.1.mlp.gate_up_proj"] == (96, 32)


def test_weights_that_are_kept_transposed_are_linears_all_the_same(base_folder: Callable[[str], Path]) -> None:
    """GPT-2's Conv1D: a linear of (out, in) to LoRA, a parameter of [in, out] to whatever replaces it."""
    spec = describe(str(base_folder("gpt2")))
    name = "transformer.h.1.attn.c_attn"
    assert spec.linears[name] == (96, 32)
    assert spec.parameters[f"{name}.weight"] == (32, 96)
    assert spec.parameters[f"{name}.bias"] == (96,)
    assert {name.rpartition(".")[2] for name in spec.transposed} == {"c_attn", "c_proj", "c_fc"}
    assert "lm_head" in spec.linears
    assert BaseSpec.from_json(spec.to_json()) == spec


def test_a_linear_with_a_forward_of_its_own_is_one_if_it_gives_a_row_for_a_row() -> None:
    """Falcon's adds its bias by itself; Phi-3.5-MoE's router gives what was chosen beside."""
    from torch import nn
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    assert is_linear(nn.Linear(2, 3))
    assert is_linear(FalconLinear(2, 3))
    router: Any = Llama4Router
    assert not is_linear(router(Llama4TextConfig(hidden_size=4, num_local_experts=2)))
    assert not is_linear(nn.Embedding(2, 3))


def test_an_embedding_that_makes_its_ids_itself_takes_no_adapter(base_folder: Callable[[str], Path]) -> None:
    assert set(describe(str(base_folder("opt"))).embeddings) == {"model.decoder.embed_tokens"}


def test_a_description_survives_json(base_folder: Callable[[str], Path]) -> None:
    spec = describe(str(base_folder("llama")))
    assert BaseSpec.from_json(spec.to_json()) == spec
    assert BaseSpec.from_json(json.dumps(spec.to_json())) == spec


def test_a_description_of_before_vectors_were_recorded_is_read(base_folder: Callable[[str], Path]) -> None:
    document = describe(str(base_folder("llama"))).to_json()
    del document["vectors"]
    assert BaseSpec.from_json(document).vectors == {}


def test_no_weight_is_read(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(base_folder("llama") / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    assert describe(str(tmp_path)) == describe(str(base_folder("llama")))


def test_an_empty_folder_is_missing_its_config(tmp_path: Path) -> None:
    with pytest.raises(BaseModelMissing, match=r"has no config\.json"):
        describe(str(tmp_path))


def test_a_folder_without_weights_is_missing_them(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(base_folder("llama") / "config.json", tmp_path)
    with pytest.raises(BaseModelMissing, match="no weights"):
        describe(str(tmp_path))


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "acme/no-such-model", "", "https://example.com/x"])
def test_a_model_that_is_not_there_is_missing(source: str) -> None:
    with pytest.raises(BaseModelMissing):
        describe(source)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"model_type": "no-such-architecture"}),
        json.dumps({"model_type": "bert", "hidden_size": "wide"}),
        json.dumps({"model_type": "vit"}),
    ],
)
def test_what_is_no_causal_language_model_is_unsupported(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises((BaseModelUnsupported, BaseModelMissing)):
        describe(str(tmp_path))


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    bait = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(bait)!r}, 'w')\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BaseModelUnsupported):
        describe(str(tmp_path))
    assert not bait.exists()
