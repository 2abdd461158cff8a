"""An adapter lies over its base model completely or is refused with the names that don't fit."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from adapters.base import BaseSpec
from adapters.errors import Finding, Rejected
from adapters.header import Header, parse_header
from adapters.peft import Layout, LoraPair, Replaced, layout, read_config
from tests.adapters.builders import (
    BASE,
    HIDDEN,
    VOCABULARY,
    Tensors,
    config_bytes,
    entries,
    magnitudes,
    named,
    tensor_name,
    tensors,
    values,
)


def header(made: Tensors) -> Header:
    raw = json.dumps(entries(made)).encode()
    return parse_header(raw, 8 + len(raw) + sum(len(data) for _, _, data in made.values()))


def whole(made: Tensors, base: BaseSpec = BASE, **changes: Any) -> Layout:
    return layout(read_config(config_bytes(**changes)), header(made), base)


def laid(made: Tensors, base: BaseSpec = BASE, **changes: Any) -> tuple[LoraPair, ...]:
    return whole(made, base, **changes).linears


def findings(made: Tensors, **changes: Any) -> tuple[Finding, ...]:
    with pytest.raises(Rejected) as refusal:
        laid(made, **changes)
    return refusal.value.findings


def test_each_pair_names_its_module_its_tensors_and_its_scale() -> None:
    first, second = laid(tensors(["down_proj"]), target_modules=["down_proj"])
    assert first == LoraPair(
        module="model.layers.0.mlp.down_proj",
        rank=4,
        scale=2.0,
        a="base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
        b="base_model.model.model.layers.0.mlp.down_proj.lora_B.weight",
        inputs=32,
        outputs=16,
    )
    assert second.module == "model.layers.1.mlp.down_proj"


def test_rank_and_alpha_patterns_and_rslora_make_the_scale() -> None:
    made = tensors(["q_proj"], rank=4)
    module = "model.layers.1.self_attn.q_proj"
    made[tensor_name(module, "A")] = ("F32", (2, HIDDEN), values((2, HIDDEN)))
    made[tensor_name(module, "B")] = ("F32", (HIDDEN, 2), values((HIDDEN, 2)))
    patterns: dict[str, Any] = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"q_proj": 6}}
    assert [pair.scale for pair in laid(made, target_modules=["q_proj"], **patterns)] == [6 / 4, 6 / 2]
    assert [pair.scale for pair in laid(made, target_modules=["q_proj"], use_rslora=True, **patterns)] == [
        6 / 2,
        6 / 2**0.5,
    ]


def test_an_adapter_for_another_base_model_is_refused_as_such() -> None:
    made = {name.replace("self_attn", "attention"): tensor for name, tensor in tensors().items()}
    found = findings(made)
    assert found[0].rule == "wrong-base-model"
    assert "acme/base" in found[0].message
    assert [(finding.rule, finding.tensor, finding.count) for finding in found[1:2]] == [
        ("unmatched-module", "layers 0-1: attention.q_proj, attention.v_proj", 4)
    ]


def test_an_adapter_only_part_of_whose_modules_match_is_refused_with_the_names() -> None:
    made = tensors()
    made["base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"] = made[
        tensor_name("model.layers.1.self_attn.q_proj", "A")
    ]
    (found,) = findings(made)
    assert (found.rule, found.tensor) == ("unmatched-module", "model.layers.2.self_attn.q_proj")


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_missing_half_is_named(side: str) -> None:
    made = tensors()
    del made[missing := tensor_name("model.layers.1.self_attn.v_proj", side)]
    (found,) = findings(made)
    assert (found.rule, found.tensor) == ("missing-tensor", missing)


def test_tensors_that_the_config_does_not_target_are_refused_and_not_skipped() -> None:
    found = findings(tensors(["q_proj", "v_proj"]), target_modules=["q_proj"])
    assert [(finding.rule, finding.tensor, finding.count) for finding in found] == [
        ("untargeted-module", "layers 0-1: self_attn.v_proj", 2)
    ]


def test_a_width_of_another_model_is_told_from_another_rank() -> None:
    made = tensors()
    name = tensor_name("model.layers.0.self_attn.q_proj", "A")
    made[name] = ("F32", (4, HIDDEN * 2), values((4, HIDDEN * 2)))
    (found,) = findings(made)
    assert (found.rule, found.tensor, found.expected, found.found) == ("wrong-base-model", name, "[4, 16]", "[4, 32]")
    made[name] = ("F32", (3, HIDDEN), values((3, HIDDEN)))
    (found,) = findings(made)
    assert (found.rule, found.expected, found.found) == ("rank-mismatch", "[4, 16]", "[3, 16]")


@pytest.mark.parametrize("shape", [(4 * HIDDEN,), (), (4, 4, 4), (0, HIDDEN), (HIDDEN, 4)])
def test_a_shape_that_is_no_matrix_of_the_rank_is_refused(shape: tuple[int, ...]) -> None:
    made = tensors()
    made[tensor_name("model.layers.0.self_attn.q_proj", "A")] = ("F32", shape, values(shape))
    (found,) = findings(made)
    assert found.rule in {"shape", "rank-mismatch", "wrong-base-model"}


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (f"base_model.model.{Q}.lora_magnitude_vector", "untargeted-tensor"),
        (f"base_model.model.{Q}.lora_B.bias", "untargeted-tensor"),
        (f"base_model.model.{Q}.weight", "untargeted-tensor"),
        (f"base_model.model.{Q}.base_layer.weight", "untargeted-tensor"),
        (f"base_model.model.{Q}.bias", "untargeted-tensor"),
        (f"base_model.model.{Q}.lora_embedding_A", "untargeted-tensor"),
        ("base_model.model.model.norm.weight", "untargeted-tensor"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "untargeted-module"),
        ("base_model.model.lm_head.lora_A.weight", "untargeted-module"),
        ("base_model.model.lm_head.base_layer.weight", "untargeted-tensor"),
        ("base_model.model.lm_head.weight", "shape"),
        ("base_model.model.model.embed_tokens.weight", "shape"),
        ("base_model.model.lm_head.bias", "unknown-tensor"),
        ("base_model.model.model.norm.bias", "unknown-tensor"),
        ("base_model.model.score.weight", "unknown-tensor"),
        ("base_model.model.lm_head.modules_to_save.weight", "unknown-tensor"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "unknown-tensor"),
        ("base_model.model.lm_head.original_module.weight", "unknown-tensor"),
        ("base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight", "sharded-names"),
        ("model.layers.0.self_attn.q_proj.lora_a", "mlx-format"),
        (f"base_model.model.{Q}.lora_diag", "unsupported-kasa"),
        (f"base_model.model.{Q}.lora_velora_embed", "unsupported-velora"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "unknown-tensor"),
        (f"base_model.model.{Q}.lora_A.default.weight", "unknown-tensor"),
        ("base_model.model.lora_A.weight", "unknown-tensor"),
        ("base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight", "compiled-names"),
        ("_orig_mod.base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", "compiled-names"),
        ("", "unknown-tensor"),
        ("../../etc/passwd", "unknown-tensor"),
        (f"base_model.model.{Q}.lora_A.weight\n", "unknown-tensor"),
        ("base_model.model.model.layers.0.self_attn.q_\u0440roj.lora_A.weight", "unmatched-module"),
        ("base_model.model.model.layers.0.self_attn.Q_PROJ.lora_A.weight", "unmatched-module"),
        ("base_model.model..lora_A.weight", "unknown-tensor"),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "unmatched-module"),
    ],
)
def test_a_tensor_that_the_config_does_not_ask_for_is_refused_by_name(name: str, rule: str) -> None:
    (found,) = findings({**tensors(), name: ("F32", (4,), values((4,)))})
    assert found.rule == rule
    assert found.message.endswith(".")


def test_dora_has_a_magnitude_for_each_pair() -> None:
    first, *_ = laid({**tensors(), **magnitudes()}, use_dora=True)
    assert first.magnitude == f"base_model.model.{Q}.lora_magnitude_vector"
    assert [(each.rule, each.count) for each in findings(tensors(), use_dora=True)] == [("missing-tensor", 4)]
    (found,) = findings({**tensors(), **magnitudes(), **named(Q, "lora_magnitude_vector", 17)}, use_dora=True)
    assert (found.rule, found.expected, found.found) == ("wrong-base-model", "[16]", "[17]")


def test_lora_bias_belongs_to_its_pair_and_to_no_embedding() -> None:
    made = {**tensors(["down_proj"]), **named("model.layers.0.mlp.down_proj", "lora_B.bias", HIDDEN)}
    made |= named("model.layers.1.mlp.down_proj", "lora_B.bias", HIDDEN)
    first, _ = laid(made, target_modules=["down_proj"], lora_bias=True)
    assert first.bias == "base_model.model.model.layers.0.mlp.down_proj.lora_B.bias"
    found = findings(made | embedding(), target_modules=["down_proj", "embed_tokens"], lora_bias=True)
    assert [finding.rule for finding in found] == ["malformed-config"]


def embedding(rank: int = 4) -> Tensors:
    made = named("model.embed_tokens", "lora_embedding_A", rank, VOCABULARY)
    return made | named("model.embed_tokens", "lora_embedding_B", HIDDEN, rank)


def test_an_embedding_is_a_pair_over_its_rows() -> None:
    (pair,) = whole(tensors() | embedding(), target_modules=["q_proj", "v_proj", "embed_tokens"]).embeddings
    assert (pair.module, pair.inputs, pair.outputs, pair.scale) == ("model.embed_tokens", VOCABULARY, HIDDEN, 2.0)
    assert pair.a.endswith("embed_tokens.lora_embedding_A")


def test_the_head_is_a_linear_like_the_others() -> None:
    made = tensors(["q_proj", "v_proj", "down_proj", "lm_head"])
    assert [pair.module for pair in laid(made, target_modules=r".*(_proj|lm_head)")][-1] == "lm_head"


def test_the_base_s_own_embedding_saved_beside_its_pair_replaces_it() -> None:
    made = tensors() | embedding() | named("model.embed_tokens", "base_layer.weight", VOCABULARY, HIDDEN)
    made |= named("lm_head", "weight", VOCABULARY, HIDDEN)
    laid_out = whole(made, target_modules=["q_proj", "v_proj", "embed_tokens"])
    assert [(each.module, each.parameter) for each in laid_out.replaced] == [
        ("model.embed_tokens", "weight"),
        ("lm_head", "weight"),
    ]


def test_a_tied_base_s_own_weight_replaces_embedding_and_head() -> None:
    tied = replace(BASE, tied=True)
    made = tensors() | named("model.embed_tokens", "weight", VOCABULARY, HIDDEN)
    name = "base_model.model.model.embed_tokens.weight"
    both = {Replaced("lm_head", "weight", name), Replaced("model.embed_tokens", "weight", name)}
    assert set(whole(made, tied).replaced) == both
    assert whole(made, tied, modules_to_save=["embed_tokens"]).replaced == (
        Replaced("model.embed_tokens", "weight", name),
    )


def test_a_retrained_module_must_be_there_as_a_whole() -> None:
    saved = named(Q, "weight", HIDDEN, HIDDEN) | named(Q, "bias", HIDDEN) | tensors(["v_proj"])
    options: dict[str, Any] = {"target_modules": ["v_proj"], "modules_to_save": ["layers.0.self_attn.q_proj"]}
    assert [each.parameter for each in whole(saved, **options).replaced] == ["weight", "bias"]
    del saved[f"base_model.model.{Q}.bias"]
    assert [finding.rule for finding in findings(saved, **options)] == ["missing-tensor"]


def test_a_retrained_module_takes_no_pair() -> None:
    made = tensors() | named("lm_head", "weight", VOCABULARY, HIDDEN)
    targets = ["q_proj", "v_proj", "lm_head"]
    assert len(laid(made, target_modules=targets, modules_to_save=["lm_head"])) == 4


@pytest.mark.parametrize(
    ("saved", "rule"),
    [("score", "unmatched-module"), ("self_attn.q_norm", "unsupported-module")],
)
def test_a_retrained_module_that_is_not_served_is_named(saved: str, rule: str) -> None:
    made = tensors()
    for layer in (0, 1):
        made |= named(f"model.layers.{layer}.self_attn.q_norm", "weight", HIDDEN // 2) if "norm" in saved else {}
    found = findings(made, modules_to_save=[saved])
    assert {finding.rule for finding in found} == {rule}
    assert saved in found[0].message


def test_the_base_s_biases_are_all_there_or_those_of_the_targets() -> None:
    biases = named("model.layers.0.self_attn.q_proj", "base_layer.bias", HIDDEN)
    biases |= named("model.layers.1.self_attn.q_proj", "base_layer.bias", HIDDEN)
    for bias in ("all", "lora_only"):
        assert len(whole(tensors() | biases, bias=bias).replaced) == 2
        assert [(each.rule, each.count) for each in findings(tensors(), bias=bias)] == [("missing-tensor", 2)]
    made = tensors(["v_proj"])
    assert whole(made, target_modules=["v_proj"], bias="lora_only").replaced == ()


def test_experts_that_are_linears_of_their_own_are_refused() -> None:
    expert = "model.layers.0.mlp.experts.3.w1"
    base = replace(BASE, linears={**BASE.linears, expert: (8, HIDDEN)})
    made = tensors() | named(expert, "lora_A.weight", 4, HIDDEN) | named(expert, "lora_B.weight", 8, 4)
    with pytest.raises(Rejected) as refusal:
        whole(made, base, target_modules=["q_proj", "v_proj", "w1"])
    assert refusal.value.rules == ("unsupported-experts",)


def test_an_excluded_head_is_no_obstacle() -> None:
    assert len(laid(tensors(), target_modules=["q_proj", "v_proj", "lm_head"], exclude_modules=["lm_head"])) == 4


def test_all_linear_leaves_the_head_out() -> None:
    made = tensors(["q_proj", "v_proj", "down_proj"])
    assert len(laid(made, target_modules="All-Linear")) == 6


@pytest.mark.parametrize("pattern", ["(", r"(q)_proj\1", "(?i)q_proj", "(" * 1000])
def test_a_pattern_that_is_not_taken_is_refused(pattern: str) -> None:
    assert [finding.rule for finding in findings(tensors(), target_modules=pattern)] == ["pattern"]
    assert [finding.rule for finding in findings(tensors(), rank_pattern={pattern: 4})] == ["pattern"]


def test_hostile_patterns_cannot_hold_the_engine_up() -> None:
    slow_to_match = {f"(?=(.*)+x)(.*)+{i}": 4 for i in range(4_000)}
    slow_to_build = {f"((({i}){{10}}){{10}}){{10}}": 4 for i in range(4_000)}
    for hostile in (slow_to_match, slow_to_build):
        config, read = read_config(config_bytes(rank_pattern=hostile)), header(tensors())
        started = time.process_time()
        with pytest.raises(Rejected) as refusal:
            layout(config, read, BASE)
        assert refusal.value.rules == ("pattern-too-costly",)
        assert time.process_time() - started < 8


def test_a_rank_for_every_module_of_a_large_model_is_read_in_a_moment() -> None:
    linears = {f"model.layers.{i}.mlp.p{j}": (8, 8) for i in range(80) for j in range(7)}
    large = BaseSpec("X", 8, 8, 8, linears, {}, False)
    made: Tensors = {
        tensor_name(m, s): ("F32", (1, 8) if s == "A" else (8, 1), bytes(32)) for m in linears for s in "AB"
    }
    config = read_config(config_bytes(target_modules=list(linears), rank_pattern=dict.fromkeys(linears, 1)))
    read = header(made)
    started = time.process_time()
    assert len(layout(config, read, large).linears) == 560
    assert time.process_time() - started < 2
