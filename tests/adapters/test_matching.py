"""PEFT's own functions are the oracle for which modules a config changes, and how strongly."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import BaseSpec
from adapters.matching import placements, retrained
from adapters.peft_config import PeftConfig

LINEARS = {
    f"model.layers.{layer}.{name}": (8, 8)
    for layer in (0, 1, 2, 10, 11)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "mlp.experts.3.w1")
}
BASE = BaseSpec("X", 8, 8, 8, {**LINEARS, "q_proj": (8, 8), "lm_head": (8, 8)}, {"model.embed_tokens": (8, 8)}, False)
NAMES = [*BASE.linears, *BASE.embeddings]

NAME = st.sampled_from(
    [
        "q_proj",
        "k_proj",
        "up_proj",
        "self_attn.q_proj",
        "layers.1.mlp.up_proj",
        "model.layers.10.self_attn.q_proj",
        "w1",
        "proj",
        "mlp",
        "lm_head",
        "model",
        "layers.1.self_attn.k_proj",
        "0.self_attn.q_proj",
        "experts.3.w1",
        "model.layers.11.mlp.up_proj",
    ]
)
REGEX = st.sampled_from(
    [
        r".*q_proj",
        r".*\.layers\.1\..*",
        r"model\.layers\.\d\.(self_attn|mlp)\..*",
        r"(?!.*up).*_proj",
        "q_proj",
        "proj",
        ".*",
        r".*[02]\.mlp.*",
    ]
)
PATTERN = st.one_of(
    NAME, NAME.map("^{}".format), REGEX, st.sampled_from([r"layers\.(0|1)\..*", r"model.layers.1\d.*", r"1.*w1|k_proj"])
)


def theirs(targets: Any, excluded: Any, layers: Any, layers_pattern: Any, saved: Any) -> set[str]:
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    config = SimpleNamespace(
        target_modules=targets,
        target_parameters=None,
        exclude_modules=excluded,
        layers_to_transform=layers,
        layers_pattern=layers_pattern,
        modules_to_save=saved,
    )
    results = {name: check_target_module_exists(config, name) for name in NAMES}
    return {name for name, result in results.items() if result and not isinstance(result, _ExcludedModule)}


@settings(max_examples=200)
@given(
    targets=st.one_of(REGEX, st.frozensets(NAME, min_size=1, max_size=4)),
    excluded=st.one_of(st.just(frozenset()), REGEX, st.frozensets(NAME, max_size=3)),
    layers=st.frozensets(st.sampled_from([0, 1, 2, 3, 10, 11]), max_size=3),
    layers_pattern=st.sampled_from([(), ("layers",), ("h", "layers"), ("experts",), ("model.layers",), ("h",)]),
    saved=st.lists(NAME, max_size=2).map(tuple),
)
def test_the_same_modules_are_targeted(
    targets: Any, excluded: Any, layers: Any, layers_pattern: Any, saved: Any
) -> None:
    if isinstance(targets, str) or not layers:
        layers, layers_pattern = frozenset(), ()
    config = PeftConfig(4, 8, targets, excluded, layers=layers, layers_pattern=layers_pattern, saved=saved)
    expected = theirs(targets, excluded or None, sorted(layers) or None, list(layers_pattern) or None, list(saved))
    assert placements(config, BASE).keys() == expected


@settings(max_examples=200)
@given(
    ranks=st.dictionaries(PATTERN, st.integers(1, 64), max_size=4),
    alphas=st.dictionaries(PATTERN, st.integers(1, 64), max_size=4),
    rslora=st.booleans(),
)
def test_ranks_alphas_and_scales_are_the_same(ranks: dict[str, int], alphas: dict[str, float], rslora: bool) -> None:
    from peft.utils.other import get_pattern_key

    config = PeftConfig(4, 8, ".*", rank_pattern=ranks, alpha_pattern=alphas, rslora=rslora)
    for name, placement in placements(config, BASE).items():
        rank = ranks.get(get_pattern_key(list(ranks), name), 4)
        alpha = alphas.get(get_pattern_key(list(alphas), name), 8)
        assert placement.rank == rank
        assert placement.scale == (alpha / rank**0.5 if rslora else alpha / rank)


@pytest.mark.parametrize("targets", ["all-linear", "ALL-LINEAR"])
def test_all_linear_is_every_linear_but_the_head(targets: str) -> None:
    assert placements(PeftConfig(4, 8, targets), BASE).keys() == BASE.linears.keys() - {"lm_head"}


def test_what_modules_to_save_names_is_what_peft_wraps() -> None:
    """PEFT's own `_set_trainable`, over modules of the base's names."""
    from peft.utils.other import ModulesToSaveWrapper, _set_trainable
    from torch import nn

    for name in ("q_proj", "proj", "layers.1.mlp", "mlp", "embed_tokens", "lm_head", "experts.3"):
        model = nn.Module()
        for path in NAMES:
            parent = model
            for part in path.split(".")[:-1]:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(path.rpartition(".")[2], nn.Linear(1, 1, bias=False))
        _set_trainable(model, "default", [name], inference_mode=False)
        wrapped = {n for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
        theirs = {path for path in NAMES if any(f"{path}.".startswith(f"{module}.") for module in wrapped)}
        found = retrained(PeftConfig(4, 8, "q_proj", saved=(name,)), BASE)[name]
        assert {parameter.removesuffix(".weight") for parameter in found} == theirs
