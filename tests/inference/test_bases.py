"""Which base models are served, exactly as Transformers and PEFT compute them, and which are refused when they are
loaded, by name and with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from adapters.base import is_linear, routed
from adapters.errors import BaseModelUnsupported
from inference.models.attention import PagedCache, UnservedModel
from inference.models.load import Model, load
from tests.inference.conftest import COMMON, distance

TOKENS = 4
WINDOW = 24
NO_HEAD_DIM = {"head_dim": None}
MIXTURE: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
TEXT = COMMON | {"vocab_size": 210}  # images' tokens come after those of prompts
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES = VISION | {"image_size": 28, "patch_size": 14}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "biogpt": ("biogpt", {}),
    "codegen": ("codegen", {"rotary_dim": 8}),
    "cohere2": ("cohere2", {"sliding_window": WINDOW}),
    "deepseek_v3": (
        "deepseek_v3",
        {**MIXTURE, **LATENT, "num_key_value_heads": 4, "head_dim": 8, "n_group": 1, "topk_group": 1}
        | {"first_k_dense_replace": 1, "moe_intermediate_size": 48},
    ),
    "falcon-7b": ("falcon", {"multi_query": True, **NO_HEAD_DIM}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, **NO_HEAD_DIM}),
    "falcon-of-many-heads": ("falcon", {"multi_query": False, "bias": True, **NO_HEAD_DIM}),
    "gemma3 with images": (
        "gemma3",
        {"text_config": TEXT | {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}, "vision_config": PATCHES}
        | {"mm_tokens_per_image": 4, "image_token_index": 200, "boi_token_index": 201, "eoi_token_index": 202},
    ),
    "glm4": ("glm4", {}),
    "gpt2": ("gpt2", {}),
    "gpt_bigcode": ("gpt_bigcode", {"multi_query": True}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local", "global"], 1]], "window_size": WINDOW}),
    "gpt_neox": ("gpt_neox", NO_HEAD_DIM),
    "gptj": ("gptj", {"rotary_dim": 8}),
    "granite": ("granite", {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    "llava": (
        "llava",
        {"text_config": TEXT | {"model_type": "llama"}, "vision_config": PATCHES | {"model_type": "clip_vision_model"}}
        | {"image_token_index": 200},
    ),
    "mistral3": (
        "mistral3",
        {"text_config": TEXT | {"model_type": "mistral"}, "image_token_index": 200}
        | {"vision_config": PATCHES | {"model_type": "pixtral", "head_dim": 16}},
    ),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": WINDOW, "global_attn_every_n_layers": 3}),
    "olmo2": ("olmo2", {}),
    "opt": ("opt", {"ffn_dim": 112, "word_embed_proj_dim": 64}),
    "opt-350m": ("opt", {"ffn_dim": 112, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "phimoe": ("phimoe", {**MIXTURE, **NO_HEAD_DIM}),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {"text_config": TEXT | {"rope_parameters": MROPE}, "image_token_id": 200, "video_token_id": 201}
        | {"vision_config": {"depth": 1, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 64}},
    ),
    "stablelm": ("stablelm", NO_HEAD_DIM),
}


@pytest.mark.parametrize("name", SERVED)
def test_base_and_adapters_are_served_exactly(workshop: Any, name: str) -> None:
    """LoRA and DoRA on everything linear but routed experts, in one batch with base rows, then once more after a hit of
    the prefix cache; prompts are longer than any window and are prefilled in chunks."""
    architecture, changes = SERVED[name]
    base = workshop.base(architecture, **changes)
    network = base.oracle(None)
    linears = [name for name, module in network.named_modules() if is_linear(module) and not routed(name)]
    linears = [name for name in linears if not name.startswith(("model.vision", "model.visual", "model.multi_modal"))]
    if any(routed(name) for name, _ in network.named_modules()):  # PEFT gives experts what lies beside them
        linears = [name for name in linears if "attn" in name]
    adapters = {
        "lora": workshop.adapter(base, "lora", r=4, lora_alpha=8, target_modules=linears),
        "dora": workshop.adapter(base, "dora", r=4, lora_alpha=8, target_modules=linears, use_dora=True),
    }
    prompts = [workshop.prompt(length) for length in (5, 60)]
    driver = workshop.engine(base, adapters, blocks=80)
    expected = {name: base.answers_and_logits(adapters.get(name), prompts, TOKENS) for name in ("", *adapters)}
    for _ in range(2):
        asked = {name: [driver.submit(p, name, max_tokens=TOKENS) for p in prompts] for name in ("", *adapters)}
        driver.run()
        for adapter, sequences in asked.items():
            answers, logits = expected[adapter]
            assert [driver.tokens(sequence) for sequence in sequences] == answers, adapter or "base"
            for sequence, theirs in zip(sequences, logits, strict=True):
                assert distance(driver.logits(sequence), theirs) < 1e-4, adapter or "base"
    assert any(sequence.cached for sequence in driver.begun())
    assert len({str(logits[0].tolist()) for _, logits in expected.values()}) == 3, "an adapter changes nothing"


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bloom": ("bloom", {}, "BloomForCausalLM can't be served: of its 3 layers 0 keep keys and values by"),
    "diffllama": ("diffllama", {}, "DiffLlamaForCausalLM can't be served: layer 0 attends more than once"),
    "falcon with ALiBi": ("falcon", {"alibi": True, **NO_HEAD_DIM}, "FalconForCausalLM can't be served: .*ALiBi"),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "sliding_window": WINDOW}, "GptOssForCausalLM can't .* s_aux"),
    "mamba": ("mamba", {}, "MambaForCausalLM can't be served: it has layers of linear_attention"),
    "mpt": ("mpt", {"max_position_embeddings": None, "d_model": 64, "n_heads": 4}, "MptConfig states no context"),
    "xglm": ("xglm", {"d_model": 64, "num_layers": 3, "attention_heads": 4}, "XGLMForCausalLM can't be served: of its"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused_by_name_and_with_the_reason(workshop: Any, name: str) -> None:
    architecture, changes, reason = REFUSED[name]
    base = workshop.base(architecture, **changes)
    with pytest.raises((UnservedModel, BaseModelUnsupported), match=reason):
        loaded(base.folder)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    return load(str(folder), torch.device("cpu"), dtype, 2)


class ShiftedConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    model_type = "shifted_llama"


class ShiftedMlp(LlamaMLP):
    """Sees the token before its own too, as it stands in the row: in a flat batch that may be another sequence's."""

    def forward(self, x: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        y: Tensor = super().forward(x + 0.5 * before)  # type: ignore[no-untyped-call]
        return y


class ShiftedForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    config_class = ShiftedConfig

    def __init__(self, config: ShiftedConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = ShiftedMlp(config)  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]


class BoundedConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    model_type = "bounded_llama"


class BoundedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class BoundedForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    config_class = BoundedConfig

    def __init__(self, config: BoundedConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.o_proj = BoundedLinear(64, 64, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


class DoubledConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    model_type = "doubled_llama"


class DoubledMlp(LlamaMLP):
    """Sees every row twice."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(torch.cat([x, 0.5 * x])).sum(0, keepdim=True)  # type: ignore[no-untyped-call]
        return y


class DoubledForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    config_class = DoubledConfig

    def __init__(self, config: DoubledConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = DoubledMlp(config)  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]


for made in (ShiftedForCausalLM, BoundedForCausalLM, DoubledForCausalLM):
    AutoConfig.register(made.config_class.model_type, made.config_class, exist_ok=True)
    AutoModelForCausalLM.register(made.config_class, made, exist_ok=True)


def test_a_linear_with_a_forward_of_its_own_keeps_it_and_takes_lora_as_in_peft(workshop: Any) -> None:
    base = workshop.base("bounded_llama")
    adapter = workshop.adapter(base, "bounded", r=4, lora_alpha=8, target_modules=["o_proj", "q_proj"])
    prompts = [workshop.prompt(20)]
    driver = workshop.engine(base, {"a": adapter})
    asked = {name: driver.submit(prompts[0], name, max_tokens=TOKENS) for name in ("", "a")}
    driver.run()
    for name, sequence in asked.items():
        answers, logits = base.answers_and_logits(adapter if name else None, prompts, TOKENS)
        assert [driver.tokens(sequence)] == answers
        assert distance(driver.logits(sequence), logits[0]) < 1e-4


def test_an_adapter_is_refused_where_no_segments_say_whose_rows_are_whose(workshop: Any) -> None:
    """The base is served, and so is an adapter on everything else."""
    base = workshop.base("doubled_llama")
    targets = {"beside": ["q_proj"], "there": ["q_proj", "up_proj"]}
    adapters = {name: workshop.adapter(base, name, r=4, lora_alpha=8, target_modules=t) for name, t in targets.items()}
    prompt = workshop.prompt(20)
    driver = workshop.engine(base, adapters)
    asked = {name: driver.submit(prompt, name, max_tokens=TOKENS) for name in ("", *adapters)}
    driver.run()
    for name in ("", "beside"):
        answers, logits = base.answers_and_logits(adapters.get(name), [prompt], TOKENS)
        assert [driver.tokens(asked[name])] == answers
        assert distance(driver.logits(asked[name]), logits[0]) < 1e-4
    ended = driver.ended(asked["there"])
    assert ended is not None
    assert ended.error is not None
    assert driver.tokens(asked["there"]) == []


def test_a_model_whose_rows_look_at_their_neighbours_is_refused(workshop: Any) -> None:
    base = workshop.base("shifted_llama")
    with pytest.raises(UnservedModel, match=r"ShiftedForCausalLM can't be served: after 32 tokens"):
        loaded(base.folder)


def test_a_window_that_is_not_kept_is_found(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base, attend = workshop.base("mistral"), PagedCache.attend

    def forgetful(cache: Any, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, _: int, cap: float) -> Tensor:
        return attend(cache, layer, q, k, v, scale, 0, cap)

    loaded(base.folder)
    monkeypatch.setattr(PagedCache, "attend", forgetful)
    with pytest.raises(UnservedModel, match=r"MistralForCausalLM can't be served: after 40 tokens its logits lie"):
        loaded(base.folder)


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, float("nan")), (torch.float16, 6e4)])
def test_a_base_whose_logits_are_no_numbers_is_refused(
    workshop: Any, tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    """A weight that was damaged, and one that float16 holds but not what it makes of a row."""
    model = workshop.base("llama").oracle(None)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3].fill_(value)
    model.save_pretrained(tmp_path)
    with pytest.raises(UnservedModel, match=r"in float\d\d its logits are not all finite numbers; load it in another"):
        loaded(tmp_path, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma", "qwen2_moe"])
def test_rounding_in_a_narrow_dtype_is_no_difference(workshop: Any, architecture: str, dtype: torch.dtype) -> None:
    loaded(workshop.base(architecture).folder, dtype)


def test_what_the_proof_took_is_given_back(workshop: Any) -> None:
    cache = loaded(workshop.base("llama").folder).cache
    assert cache.layout is None
    assert cache.numbers_per_token == 3 * 2 * (16 + 16)
