"""Norms of changes and of their differences, against the products themselves."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.linalg import block_diag

from adapters import change
from adapters.change import Adapter, Comparison, compare
from adapters.errors import Rejected
from adapters.peft import LoraPair
from tests.adapters import builders
from tests.adapters import test_stacks as stacks
from tests.adapters.builders import BASE, HIDDEN, VOCABULARY, Tensors, tensors


def written(folder: Path, made: Tensors, **config: Any) -> Adapter:
    files = {
        "adapter_config.json": builders.config_bytes(**config),
        "adapter_model.safetensors": builders.weights(made),
    }
    return Adapter(builders.write(folder, files), BASE)


def numbers(adapter: Adapter, name: str) -> Any:
    found = np.array(adapter.matrix(name))
    return (found.astype("<u4") << 16).view("<f4") if adapter.is_bfloat(name) else found


def product(adapter: Adapter, module: str) -> Any:
    """The change of the module, formed."""
    pair = adapter.pairs.get(module)
    if pair is None:
        return 0.0
    assert isinstance(pair, LoraPair)
    return pair.scale * numbers(adapter, pair.b).astype(np.float64) @ numbers(adapter, pair.a).astype(np.float64)


def check(first: Adapter, second: Adapter) -> Comparison:
    found = compare(first, second)
    for module in found.modules:
        a, b = product(first, module.module), product(second, module.module)
        norms = [0.0 if isinstance(side, float) else np.linalg.norm(side) for side in (a, b)]
        assert [norm or 0.0 for norm in module.norms] == pytest.approx(norms, rel=1e-9)
        assert module.difference == pytest.approx(np.linalg.norm(a - b), rel=1e-6)
    squares = sum(module.difference**2 for module in found.modules)
    assert found.difference == pytest.approx(squares**0.5)
    return found


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("size", [64, change.SLICE], ids=["sliced", "whole"])
def test_norms_are_those_of_the_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, size: int
) -> None:
    monkeypatch.setattr(change, "SLICE", size)
    first = written(tmp_path / "one", tensors(rank=4, dtype=dtype))
    second = written(
        tmp_path / "two", tensors(("q_proj", "down_proj"), rank=8), r=8, target_modules=["q_proj", "down_proj"]
    )
    found = check(first, second)
    ranks = {module.module.rpartition(".")[2]: module.ranks for module in found.modules}
    assert ranks == {"q_proj": (4, 8), "v_proj": (4, None), "down_proj": (None, 8)}
    assert set(found.config) == {"r", "target_modules"}
    assert found.config["r"] == (4, 8)


def test_an_adapter_does_not_differ_from_itself(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, tensors()) for name in ("one", "two"))
    found = compare(first, second)
    assert (found.difference, dict(found.config)) == (0.0, {})
    assert found.norms[0] == found.norms[1] > 0


def test_another_alpha_alone_is_a_difference_of_scale(tmp_path: Path) -> None:
    first, second = written(tmp_path / "one", tensors()), written(tmp_path / "two", tensors(), lora_alpha=16)
    found = check(first, second)
    assert found.norms[1] == pytest.approx(2 * found.norms[0])
    assert found.difference == pytest.approx(found.norms[0])


def test_an_embedding_is_compared_and_what_is_beside_the_product_is_named(tmp_path: Path) -> None:
    made = builders.named("model.embed_tokens", "lora_embedding_A", 4, VOCABULARY)
    made |= builders.named("model.embed_tokens", "lora_embedding_B", HIDDEN, 4)
    made |= tensors(("q_proj",)) | builders.magnitudes(("q_proj",))
    config: Mapping[str, Any] = {
        "target_modules": ["q_proj", "embed_tokens"],
        "use_dora": True,
        "modules_to_save": ["lm_head"],
    }
    made |= builders.named("model.embed_tokens", "lora_magnitude_vector", HIDDEN)
    made |= builders.named("lm_head", "weight", VOCABULARY, HIDDEN)
    found = check(written(tmp_path / "one", made, **config), written(tmp_path / "two", tensors()))
    beside = {module.module: module.beside for module in found.modules}
    assert beside["model.embed_tokens"] == ("dora",)
    assert beside["lm_head"] == ("weight",)
    assert beside["model.layers.0.self_attn.v_proj"] == ()


def test_a_config_that_is_large_or_odd_is_shown_in_short(tmp_path: Path) -> None:
    odd = {"revision": "x" * 5000, "base_model_name_or_path": "\u202e"}
    found = compare(written(tmp_path / "one", tensors()), written(tmp_path / "two", tensors(), **odd))
    assert len(found.config["revision"][1]) < 1100
    assert found.config["base_model_name_or_path"][1].isascii()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected):
        written(tmp_path, tensors(rank=8))


def test_experts_are_one_module_whether_their_pairs_lie_together_or_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same change, written as PEFT writes it now and as it did when experts were linears of their own."""
    monkeypatch.setattr(change, "SLICE", 256)
    drawn = np.random.default_rng(0)
    apart: dict[str, Any] = {name: drawn.standard_normal(shape).astype("<f4") for name, shape in stacks.apart().items()}
    pairs = {
        name: drawn.standard_normal(shape).astype("<f4")
        for name, shape in (stacks.attention() | stacks.together()).items()
    }
    for layer in range(2):
        owner = f"base_model.model.model.layers.{layer}.mlp.experts"
        for below, parts in ((".base_layer", ("gate_proj", "up_proj")), ("", ("down_proj",))):
            names = [[f"{owner}.{expert}.{part}.lora_" for part in parts] for expert in range(stacks.EXPERTS)]
            a = [apart[f"{part}A.weight"] for parts in names for part in parts]
            b = np.stack([block_diag(*(apart[f"{part}B.weight"] for part in parts)) for parts in names])
            pairs[f"{owner}{below}.lora_A.weight"] = np.concatenate(a)
            pairs[f"{owner}{below}.lora_B.weight"] = np.ascontiguousarray(b.transpose(1, 2, 0)).reshape(b.shape[1], -1)
    attention = {name: pairs[name] for name in stacks.attention()}
    usual = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    one, two = (
        stacked(tmp_path / name, made, target_modules=usual)
        for name, made in (("now", pairs), ("then", attention | apart))
    )
    found = compare(one, two)
    assert found.difference == 0.0
    experts = {module.module: module for module in found.modules if "experts" in module.module}
    assert set(experts) == set(stacks.BASE.experts)
    formed = sum(
        np.linalg.norm(2.0 * apart[f"{name}B.weight"].astype(float) @ apart[f"{name}A.weight"].astype(float)) ** 2
        for name in {name[: name.index("lora_") + 5] for name in apart if "layers.0" in name and "down_proj" in name}
    )
    assert experts["model.layers.0.mlp.experts.down_proj"].norms[0] == pytest.approx(formed**0.5)
    none = stacked(tmp_path / "none", attention, target_modules=["q_proj"])
    assert compare(one, none).difference == pytest.approx(math.hypot(*(e.norms[0] or 0.0 for e in experts.values())))


def stacked(folder: Path, made: dict[str, Any], **config: Any) -> Adapter:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(builders.config_bytes(r=2, lora_alpha=4, **config))
    save_file(made, folder / "adapter_model.safetensors")
    return Adapter(folder, stacks.BASE)
