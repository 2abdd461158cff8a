"""What PEFT can put into adapter_config.json is understood or refused by name; nothing in it is ever acted upon."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest

from adapters import peft_config
from adapters.errors import Rejected
from adapters.files import CONFIG
from adapters.limits import Limits
from adapters.peft import PeftConfig, read_config
from tests.adapters.builders import config, config_bytes


def rules(raw: bytes, limits: Limits | None = None) -> tuple[str, ...]:
    with pytest.raises(Rejected) as refusal:
        read_config(raw, limits or Limits())
    return refusal.value.rules


def test_what_decides_is_read() -> None:
    read = read_config(
        config_bytes(
            r=8,
            lora_alpha=16.5,
            target_modules=["q_proj"],
            exclude_modules=["model.layers.0.self_attn.q_proj"],
            rank_pattern={"^model.layers.1": 2},
            alpha_pattern={"v_proj": 4},
            use_rslora=True,
            layers_to_transform=[1],
            layers_pattern="layers",
        )
    )
    assert read == PeftConfig(
        rank=8,
        alpha=16.5,
        targets=frozenset({"q_proj"}),
        excluded=frozenset({"model.layers.0.self_attn.q_proj"}),
        rank_pattern={"^model.layers.1": 2},
        alpha_pattern={"v_proj": 4.0},
        rslora=True,
        layers=frozenset({1}),
        layers_pattern=("layers",),
        base_model="acme/base",
    )


def test_a_path_reads_as_its_bytes_do(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(config_bytes())
    assert read_config(tmp_path / CONFIG) == read_config(config_bytes())


@pytest.mark.parametrize(
    "harmless",
    [
        {
            "auto_mapping": {
                "base_model_class": "LlamaForCausalLM",
                "parent_library": "transformers.models.llama.modeling_llama",
            }
        },
        {"auto_mapping": {"base_model_class": None, "parent_library": None, "unsloth_fixed": True}},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
        {"auto_mapping": {"parent_library": "transformers_modules.evil.modeling"}},
        {"auto_mapping": {"parent_library": "transformers.models; import os"}},
        {"auto_mapping": {"base_model_class": "os.system"}},
        {"auto_mapping": {"AutoModel": "evil/repo--modeling.Evil"}},
        {"auto_mapping": {"custom": {"a": "b"}}},
        {"auto_mapping": "evil"},
        {"auto_mapping": ["evil"]},
        {"trainable_token_indices": [5, 1]},
        {"trainable_token_indices": {"embed_tokens": [1], "lm_head": [1, 2]}},
        {"base_model_name_or_path": "/home/someone/models/llama"},
        {"bias": None},
        {"eva_config": {"rho": 2.0}},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": False},
        {"layers_to_transform": []},
        {"loftq_config": None},
        {"lora_alpha": 0.5},
        {"lora_dropout": 0.3},
        {"megatron_core": None},
        {"modules_to_save": []},
        {"new_field_that_is_off": False, "another": None, "a_third": []},
        {"peft_version": "0.4.0"},
        {"rank_pattern": None},
        {"revision": "main"},
        {"runtime_config": {"ephemeral_gpu_offload": False}},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|v)_proj"},
        {"task_type": None},
    ],
    ids=str,
)
def test_what_changes_no_answer_is_taken(harmless: dict[str, Any]) -> None:
    read_config(config_bytes(**harmless))


def test_the_short_configs_of_old_peft_versions_are_taken() -> None:
    kept = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "base_model_name_or_path", "inference_mode")
    raw = json.dumps({key: value for key, value in config().items() if key in kept}).encode()
    assert read_config(raw).rank == 4


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"trainable_token_indices": [1, 1]}, "malformed-config"),
        ({"trainable_token_indices": [-1]}, "malformed-config"),
        ({"trainable_token_indices": [1.0]}, "malformed-config"),
        ({"trainable_token_indices": {"embed_tokens": []}}, "malformed-config"),
        ({"trainable_token_indices": {"embed.*": [1]}}, "malformed-config"),
        ({"trainable_token_indices": "all"}, "malformed-config"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "unsupported-layer-replication"),
        ({"target_parameters": "experts.gate_up_proj"}, "malformed-config"),
        ({"target_parameters": [["experts.gate_up_proj"]]}, "malformed-config"),
        ({"use_qalora": True}, "unsupported-qalora"),
        ({"use_bdlora": {"target_modules_bd_a": ["q_proj"]}}, "unsupported-bdlora"),
        ({"arrow_config": {"top_k": 3}}, "unsupported-arrow"),
        ({"kasa_config": {"beta": 1}}, "unsupported-kasa"),
        ({"velora_config": {"num_groups": 64}}, "unsupported-velora"),
        ({"monteclora_config": {"num": 8}}, "unsupported-monteclora"),
        ({"alora_invocation_tokens": [1, 2]}, "unsupported-alora"),
        ({"megatron_config": {"a": 1}}, "unsupported-megatron"),
        ({"use_dora": "yes"}, "malformed-config"),
        ({"lora_bias": 1}, "malformed-config"),
        ({"lora_bias": True, "use_dora": True}, "malformed-config"),
        ({"bias": "some"}, "malformed-config"),
        ({"bias": ["all"]}, "malformed-config"),
        ({"modules_to_save": "lm_head"}, "malformed-config"),
        ({"modules_to_save": [1]}, "malformed-config"),
        ({"modules_to_save": [""]}, "malformed-config"),
        ({"modules_to_save": ["(a+)+"]}, "malformed-config"),
        ({"modules_to_save": ["lm_head"] * 65}, "malformed-config"),
        ({"ensure_weight_tying": "yes"}, "malformed-config"),
        ({"task_type": "SEQ_CLS"}, "unsupported-task"),
        ({"init_lora_weights": "pissa"}, "unconverted-init"),
        ({"init_lora_weights": "pissa_niter_16"}, "unconverted-init"),
        ({"init_lora_weights": "olora"}, "unconverted-init"),
        ({"init_lora_weights": "OLoRA"}, "unconverted-init"),
        ({"init_lora_weights": "corda"}, "unconverted-init"),
        ({"init_lora_weights": "loftq"}, "unconverted-init"),
        ({"init_lora_weights": "lora_ga"}, "unconverted-init"),
        ({"init_lora_weights": 1}, "unconverted-init"),
        ({"init_lora_weights": {"a": 1}}, "unconverted-init"),
        ({"peft_type": "LOHA"}, "unsupported-peft-type"),
        ({"peft_type": "ADALORA"}, "unsupported-peft-type"),
        ({"peft_type": "lora"}, "unsupported-peft-type"),
        ({"peft_type": None}, "unsupported-peft-type"),
        ({"peft_type": ["LORA"]}, "unsupported-peft-type"),
        ({"invented_in_2027": "on"}, "unknown-config-field"),
        ({"r": 0}, "rank"),
        ({"r": -8}, "rank"),
        ({"r": 257}, "rank"),
        ({"r": 8.0}, "rank"),
        ({"r": True}, "rank"),
        ({"r": "8"}, "rank"),
        ({"r": 10**30}, "rank"),
        ({"r": None}, "rank"),
        ({"rank_pattern": {"q_proj": 0}}, "rank"),
        ({"rank_pattern": {"q_proj": 1000}}, "rank"),
        ({"rank_pattern": {"q_proj": [8]}}, "rank"),
        ({"rank_pattern": ["q_proj"]}, "malformed-config"),
        ({"lora_alpha": 0}, "alpha"),
        ({"lora_alpha": -1}, "alpha"),
        ({"lora_alpha": 1e300}, "alpha"),
        ({"lora_alpha": 10**400}, "alpha"),
        ({"lora_alpha": True}, "alpha"),
        ({"lora_alpha": "16"}, "alpha"),
        ({"lora_alpha": None}, "alpha"),
        ({"alpha_pattern": {"q_proj": -4}}, "alpha"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha"),
        ({"target_modules": None}, "malformed-config"),
        ({"target_modules": []}, "malformed-config"),
        ({"target_modules": ""}, "malformed-config"),
        ({"target_modules": 5}, "malformed-config"),
        ({"target_modules": ["q_proj", 5]}, "malformed-config"),
        ({"target_modules": [["q_proj"]]}, "malformed-config"),
        ({"target_modules": "x" * 10_000}, "malformed-config"),
        ({"exclude_modules": {"a": 1}}, "malformed-config"),
        ({"use_rslora": "yes"}, "malformed-config"),
        ({"layers_to_transform": "all"}, "malformed-config"),
        ({"layers_to_transform": [-1]}, "malformed-config"),
        ({"layers_pattern": "layers"}, "malformed-config"),
        ({"layers_to_transform": [0], "layers_pattern": "(a+)+"}, "malformed-config"),
        ({"layers_to_transform": [0], "target_modules": "all-linear"}, "malformed-config"),
    ],
    ids=str,
)
def test_what_cannot_be_served_exactly_is_refused_by_name(change: dict[str, Any], rule: str) -> None:
    raw = json.dumps(config(**change)).encode()
    assert rules(raw) == (rule,)


def test_the_reason_says_what_the_adapter_is_and_what_to_do() -> None:
    with pytest.raises(Rejected) as refusal:
        read_config(config_bytes(use_qalora=True))
    assert refusal.value.findings[0].message == (
        "This adapter was trained with QALoRA (use_qalora=true), which isn't served; "
        "train it as plain LoRA, or merge it into its base model."
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("IA3", "scales activations"),
        ("PROMPT_TUNING", "prepends trained tokens"),
        ("VERA", "at random from a seed"),
        ("LOHA", "peft.save_as_lora"),
        ("SOMETHING_NEW", "isn't known here"),
    ],
)
def test_another_type_is_refused_with_the_reason(kind: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason) as refusal:
        read_config(config_bytes(peft_type=kind))
    assert kind in refusal.value.findings[0].message


@pytest.mark.parametrize(("init", "remedy"), [("pissa", "path_initial_model"), ("loftq", "append its initial A")])
def test_an_initialisation_that_changes_the_base_is_refused_with_the_way_to_convert_it(init: str, remedy: str) -> None:
    with pytest.raises(Rejected, match=remedy):
        read_config(config_bytes(init_lora_weights=init))


def test_what_is_trained_beside_the_pairs_is_read() -> None:
    read = read_config(
        config_bytes(use_dora=True, bias="lora_only", modules_to_save=["lm_head", "norm"], ensure_weight_tying=True)
    )
    assert (read.dora, read.bias, read.saved, read.tie) == (True, "lora_only", ("lm_head", "norm"), True)
    assert read_config(config_bytes(lora_bias=True)).lora_bias


def test_all_reasons_are_told_at_once() -> None:
    assert set(rules(config_bytes(use_qalora=True, r=0, lora_alpha=-1, bias="most", surprise=1))) == {
        "unsupported-qalora",
        "malformed-config",
        "unknown-config-field",
        "rank",
        "alpha",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_core": "evil.module"},
        {"megatron_core": ["evil"]},
    ],
    ids=str,
)
def test_a_field_that_points_at_code_is_refused(change: dict[str, Any]) -> None:
    assert rules(config_bytes(**change)) == ("config-code",)


@pytest.mark.parametrize("name", ["auto_map", "trust_remote_code", "custom_pipelines", "chat_template", "_class_name"])
def test_fields_of_other_loaders_have_no_place_here(name: str) -> None:
    assert rules(config_bytes(**{name: "evil.py"})) == ("unknown-config-field",)


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "malformed-json"),
        (b"{", "malformed-json"),
        (b"\xff\xfe{}", "malformed-json"),
        (b"\xef\xbb\xbf{}", "malformed-json"),
        (b"[" * 200_000, "malformed-json"),
        (b"[]", "malformed-json"),
        (b'"LORA"', "malformed-json"),
        (b"\x80\x04}.", "malformed-json"),
        (b'{"peft_type": "LORA", "lora_alpha": NaN}', "malformed-json"),
        (b'{"peft_type": "LORA", "lora_alpha": -Infinity}', "malformed-json"),
        (b'{"peft_type": "LORA", "r": ' + b"1" * 5_000 + b"}", "malformed-json"),
        (b'{"peft_type": "LORA", "r": 1, "r": 8}', "duplicate-key"),
        (b'{"peft_type": "LORA", "rank_pattern": {"q": 1, "q": 2}}', "duplicate-key"),
        (b'{"peft_type": "LORA", "revision": "a\\u0000b"}', "bad-text"),
        (b'{"peft_type": "LORA", "rank_pattern": {"\\ud800": 1}}', "bad-text"),
        (b'{"peft_type": "LORA", "target_modules": ["q", "\\uDFFF"]}', "bad-text"),
        (b'"\\udc00\\ud800"', "bad-text"),
        (b" " * (2**20 + 1), "config-too-large"),
    ],
)
def test_what_is_no_config_is_refused(raw: bytes, rule: str) -> None:
    assert rules(raw) == (rule,)


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("base_model_name_or_path", "acme/\0base", "base_model_name_or_path holds a zero character"),
        ("revision", "\ud83d", "revision holds half of a surrogate pair"),
        ("target_modules", ["q_proj", "v\0"], "target_modules[1] holds a zero character"),
        ("loftq_config", {"a": [{"b": "\udfff"}]}, "loftq_config.a[0].b holds half"),
        ("alpha_pattern", {"q\0": 1}, "the key 'q\\x00' in alpha_pattern holds a zero character"),
    ],
)
def test_text_that_no_database_takes_is_refused_with_its_place(field: str, value: Any, place: str) -> None:
    with pytest.raises(Rejected) as refusal:
        read_config(config_bytes(**{field: value}))
    assert refusal.value.rules == ("bad-text",)
    assert place in refusal.value.findings[0].message


def test_whole_surrogate_pairs_are_text_like_any_other() -> None:
    assert read_config(config_bytes(base_model_name_or_path="acme/\U0001f600")).base_model == "acme/\U0001f600"


def test_an_infinite_alpha_cannot_be_written_in_json_either() -> None:
    raw = config_bytes().replace(b'"lora_alpha": 8', b'"lora_alpha": 1e999')
    assert rules(raw) == ("alpha",)


def test_there_may_be_only_so_many_patterns() -> None:
    assert rules(config_bytes(rank_pattern={f"m{i}": 1 for i in range(11)}), Limits(patterns=10)) == (
        "malformed-config",
    )


def test_every_field_that_peft_knows_is_decided_on() -> None:
    """A new PEFT version's fields must be looked at: this fails until they are."""
    known = peft_config._UNSERVED.keys() | peft_config._WITHOUT_EFFECT | peft_config._CHECKED
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} - known == set()
