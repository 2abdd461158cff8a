"""What a file must hold of a mixture's experts and routers, and what is said of a file that doesn't."""

from dataclasses import replace
from typing import Any

import pytest

from adapters.base import BaseSpec
from adapters.errors import Rejected
from adapters.header import Header, Tensor
from adapters.mixtures import Experts
from adapters.peft import Layout, layout, read_config
from tests.adapters.builders import config_bytes

EXPERTS, HIDDEN, WIDE = 4, 16, 12
OLD = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
BASE = BaseSpec(
    "MixtureForCausalLM",
    64,
    50,
    HIDDEN,
    {f"model.layers.{layer}.attn.q_proj": (HIDDEN, HIDDEN) for layer in range(2)} | {"lm_head": (50, HIDDEN)},
    {"embed_tokens": (50, HIDDEN)},
    False,
    experts={
        f"model.layers.{layer}.mlp.experts.{name}": Experts(EXPERTS, *shape, 2, parts)
        for layer in range(2)
        for name, shape, parts in (
            ("gate_up_proj", (2 * WIDE, HIDDEN), ("gate_proj", "up_proj")),
            ("down_proj", (HIDDEN, WIDE), ("down_proj",)),
        )
    },
    routers={f"model.layers.{layer}.mlp.gate": (EXPERTS, HIDDEN) for layer in range(2)},
    fused=OLD,
)
Shapes = dict[str, tuple[int, ...]]


def pair(module: str, rank: int, outputs: int, inputs: int, lots: int = 1) -> Shapes:
    return {
        f"base_model.model.{module}.lora_A.weight": (rank * lots, inputs),
        f"base_model.model.{module}.lora_B.weight": (outputs, rank * lots),
    }


def attention(rank: int = 2) -> Shapes:
    return {
        name: s for at in range(2) for name, s in pair(f"model.layers.{at}.attn.q_proj", rank, HIDDEN, HIDDEN).items()
    }


def together(up: int = 4, down: int = 2, layers: tuple[int, ...] = (0, 1)) -> Shapes:
    shapes: Shapes = {}
    for layer in layers:
        owner = f"model.layers.{layer}.mlp.experts"
        shapes |= pair(f"{owner}.base_layer", up, 2 * WIDE, HIDDEN, EXPERTS) | pair(owner, down, HIDDEN, WIDE, EXPERTS)
    return shapes


def apart(rank: int = 2, layers: tuple[int, ...] = (0, 1), parts: tuple[str, ...] = tuple(OLD)[1:]) -> Shapes:
    sides = {"gate_proj": (WIDE, HIDDEN), "up_proj": (WIDE, HIDDEN), "down_proj": (HIDDEN, WIDE)}
    names = [
        (f"model.layers.{at}.mlp.experts.{e}.{part}", part) for at in layers for e in range(EXPERTS) for part in parts
    ]
    return {name: shape for module, part in names for name, shape in pair(module, rank, *sides[part]).items()}


def laid(shapes: Shapes, base: BaseSpec = BASE, **config: Any) -> Layout:
    tensors, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        tensors[name] = Tensor(name, "F32", shape, at, at + size)
        at += size
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", *tuple(OLD)[1:]], **config}
    return layout(read_config(config_bytes(**settings)), Header(tensors, at), base)


def refused(*asked: Any, **config: Any) -> Any:
    with pytest.raises(Rejected) as refusal:
        laid(*asked, **config)
    return refusal.value.findings


def test_the_usual_names_mean_the_experts_fused_parameters_with_the_rank_of_all_that_is_in_them() -> None:
    plan = laid(attention() | together())
    assert [(each.parameter, each.rank, each.scale, each.parts) for each in plan.experts[:2]] == [
        ("model.layers.0.mlp.experts.gate_up_proj", 4, 2.0, 0),
        ("model.layers.0.mlp.experts.down_proj", 2, 2.0, 0),
    ]
    assert plan.experts[0].a == ("base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight",)
    assert plan.experts[1].b == ("base_model.model.model.layers.0.mlp.experts.lora_B.weight",)
    assert {each.module for each in plan.linears} == {"model.layers.0.attn.q_proj", "model.layers.1.attn.q_proj"}


def test_target_parameters_and_all_linear_mean_the_same_and_routers_too() -> None:
    routers = pair("model.layers.0.mlp.gate", 2, EXPERTS, HIDDEN) | pair("model.layers.1.mlp.gate", 2, EXPERTS, HIDDEN)
    both = attention() | together() | routers
    plan = laid(both, target_modules="all-linear")
    names = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
    ranks = {"experts.gate_up_proj": 4}
    config: dict[str, Any] = {
        "target_modules": ["q_proj"],
        "target_parameters": names,
        "rank_pattern": ranks,
        "alpha_pattern": {},
    }
    assert laid(both, **config).routers == plan.routers
    assert [each.rank for each in laid(both, **config).experts] == [each.rank for each in plan.experts]
    assert {each.module for each in plan.routers} == set(BASE.routers)


def test_one_parameter_alone_lies_below_the_module_itself() -> None:
    only = pair("model.layers.0.mlp.experts", 3, 2 * WIDE, HIDDEN, EXPERTS)
    plan = laid(only, r=3, target_modules=[], target_parameters=["model.layers.0.mlp.experts.gate_up_proj"])
    assert [each.parameter for each in plan.experts] == ["model.layers.0.mlp.experts.gate_up_proj"]


def test_pairs_of_separate_experts_are_found_expert_by_expert() -> None:
    plan = laid(attention() | apart())
    assert [(each.rank, each.parts, len(each.a)) for each in plan.experts[:2]] == [(4, 2, 8), (2, 1, 4)]
    assert plan.experts[0].a[:3] == tuple(
        f"base_model.model.model.layers.0.mlp.experts.{name}.lora_A.weight"
        for name in ("0.gate_proj", "0.up_proj", "1.gate_proj")
    )


def test_layers_that_separate_experts_were_not_trained_in_are_left_as_they_are() -> None:
    """PEFT gives them pairs that do nothing."""
    some = {name: s for name, s in attention().items() if ".1." in name} | apart(layers=(1,))
    plan = laid(some, layers_to_transform=[1])
    assert {each.parameter.split(".")[2] for each in plan.experts} == {"1"}


@pytest.mark.parametrize(
    ("shapes", "config", "rules", "word"),
    [
        (attention() | apart(layers=(0,)), {}, {"missing-tensor"}, "lacks it"),
        (attention() | together(up=2), {}, {"rank-mismatch"}, "another rank"),
        (attention() | together(down=3), {}, {"rank-mismatch"}, "another rank"),
        (attention() | apart(), {"target_modules": ["q_proj", "up_proj"]}, {"unsupported-experts"}, "train both"),
        (attention() | apart(parts=("gate_proj", "up_proj")), {"target_modules": ["q_proj", "gate_proj", "up_proj"]},
         {"unsupported-experts"}, "without down_proj"),
        (attention() | together(), {"use_dora": True}, {"malformed-config", "missing-tensor"}, "use_dora"),
        (attention() | together(), {"lora_bias": True}, {"malformed-config", "missing-tensor"}, "lora_bias"),
        (attention(200) | together(400, 200), {"r": 200}, {"rank"}, "lower one"),
        (attention(), {"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]}, {"malformed-config"},
         "keep one"),
        (attention(), {"target_modules": ["q_proj"], "target_parameters": ["embed_tokens.weight"]},
         {"unsupported-target-parameters"}, "leave it out"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_reason(
    shapes: Shapes, config: dict[str, Any], rules: set[str], word: str
) -> None:
    findings = refused(shapes, **config)
    assert {finding.rule for finding in findings} == rules
    assert any(word in finding.message for finding in findings)


def test_an_expert_too_few_is_missed_and_a_wrong_shape_is_another_bases() -> None:
    whole = attention() | apart()
    name = "base_model.model.model.layers.0.mlp.experts.2.up_proj.lora_B.weight"
    assert [finding.tensor for finding in refused({n: s for n, s in whole.items() if n != name})] == [name]
    assert [finding.rule for finding in refused(whole | {name: (WIDE + 1, 2)})] == ["wrong-base-model"]


def test_experts_that_peft_does_not_read_so_say_what_would_be_read() -> None:
    (finding, *_) = refused(attention() | apart(), replace(BASE, fused={}))
    assert finding.rule == "unsupported-experts"
    assert "target_parameters experts.gate_up_proj and experts.down_proj" in finding.message
    unserved = replace(BASE, fused={}, experts={}, routers={})
    (finding, *_) = refused(attention() | together(), unserved, target_parameters=["experts.down_proj"])
    assert finding.rule == "unsupported-experts"
    assert "leave experts out" in finding.message


def test_a_linear_may_be_named_by_its_weight() -> None:
    plan = laid(attention(), target_modules=[], target_parameters=["q_proj.weight"])
    assert len(plan.linears) == 2


def test_a_description_survives_its_document() -> None:
    assert BaseSpec.from_json(BASE.to_json()) == BASE
    older = {name: value for name, value in BASE.to_json().items() if name not in ("experts", "routers", "fused")}
    assert BaseSpec.from_json(older) == replace(BASE, experts={}, routers={}, fused={})


def test_experts_that_were_retrained_as_a_whole_are_refused_with_the_reason() -> None:
    whole = {"base_model.model.model.layers.0.mlp.experts.gate_up_proj": (EXPERTS * 2 * WIDE, HIDDEN)}
    (finding, *_) = refused(attention() | whole, target_modules=["q_proj"], modules_to_save=["layers.0.mlp"])
    assert finding.rule == "unsupported-experts"
    assert "LoRA" in finding.message
