"""An adapter lies over its base model completely or is refused with the names that don't fit."""

import json
import time
from typing import Any

import pytest

from adapters.base import BaseSpec
from adapters.errors import Finding, Rejected
from adapters.header import Header, parse_header
from adapters.peft import LoraPair, pairs, read_config
from tests.adapters.builders import BASE, HIDDEN, Tensors, config_bytes, entries, tensor_name, tensors, values


def header(made: Tensors) -> Header:
    raw = json.dumps(entries(made)).encode()
    return parse_header(raw, 8 + len(raw) + sum(len(data) for _, _, data in made.values()))


def laid(made: Tensors, base: BaseSpec = BASE, **changes: Any) -> tuple[LoraPair, ...]:
    return pairs(read_config(config_bytes(**changes)), header(made), base)


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
    assert {finding.tensor for finding in found if finding.rule == "unmatched-module"} == {
        f"model.layers.{layer}.attention.{name}_proj" for layer in (0, 1) for name in "qv"
    }


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
    assert {finding.rule for finding in found} == {"untargeted-module"}
    assert len(found) == 2


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


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "unsupported-dora"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "unsupported-embedding"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "unsupported-lora-bias"),
        ("base_model.model.lm_head.base_layer.weight", "unsupported-base-weights"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_diag", "unsupported-kasa"),
        ("base_model.model.lm_head.weight", "unknown-tensor"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "unknown-tensor"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "unknown-tensor"),
        ("base_model.model.lora_A.weight", "unknown-tensor"),
        ("base_model.model._orig_mod.x", "unknown-tensor"),
        ("", "unknown-tensor"),
        ("../../etc/passwd", "unknown-tensor"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\n", "unknown-tensor"),
        ("base_model.model.model.layers.0.self_attn.q_\u0440roj.lora_A.weight", "unmatched-module"),
        ("base_model.model.model.layers.0.self_attn.Q_PROJ.lora_A.weight", "unmatched-module"),
        ("base_model.model..lora_A.weight", "unknown-tensor"),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "unmatched-module"),
    ],
)
def test_a_tensor_of_another_kind_is_refused_by_name(name: str, rule: str) -> None:
    (found,) = findings({**tensors(), name: ("F32", (4,), values((4,)))})
    assert found.rule == rule
    assert found.message.endswith(".")


@pytest.mark.parametrize("targets", [r".*(_proj|lm_head)", r".*"])
def test_a_regex_that_takes_the_head_in_is_refused(targets: str) -> None:
    found = findings(tensors(["q_proj", "v_proj", "down_proj", "lm_head"]), target_modules=targets)
    assert "unsupported-embedding" in {finding.rule for finding in found}


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
            pairs(config, read, BASE)
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
    assert len(pairs(config, read, large)) == 560
    assert time.process_time() - started < 2
