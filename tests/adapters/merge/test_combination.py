"""Several adapters as one: what PEFT's add_weighted_adapter makes of them, tensor by tensor."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.base import BaseSpec
from adapters.errors import Unmergeable
from adapters.merge.arithmetic import Method, Recipe, Weighted, combine
from adapters.merge.combination import METADATA, merge_adapters, open_part
from adapters.validation import validate

Folders = Callable[[str], Path]
Specs = Callable[[str], BaseSpec]
Trained = Callable[..., tuple[Path, Any]]
Pair = tuple[torch.Tensor, torch.Tensor]

SEED = 7
WEIGHTS = [0.7, -0.4, 1.3]
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "embedding": {"lora_alpha": 6, "target_modules": ["q_proj", "embed_tokens"]},
    "rslora": {"use_rslora": True},
    "wide": {"r": 8},
    "mixed": {"rank_pattern": {"q_proj": 2}},
}


@pytest.fixture(scope="module")
def folders(trained: Trained) -> dict[str, Path]:
    return {name: trained("llama", seed=seed, **config)[0] for seed, (name, config) in enumerate(CONFIGS.items())}


@pytest.fixture
def merged(
    folders: dict[str, Path], base_folder: Folders, spec_of: Specs, tmp_path: Path
) -> Callable[..., tuple[dict[str, Pair], Path]]:
    """Our combination of adapters, by module; valid as an upload."""

    def run(names: Sequence[str], recipe: Recipe) -> tuple[dict[str, Pair], Path]:
        spec, source = spec_of("llama"), str(base_folder("llama"))
        weighted = zip(names, WEIGHTS, strict=False)
        parts = [open_part(name, weight, folders[name], spec, source) for name, weight in weighted]
        merge_adapters(parts, recipe, spec, tmp_path / "out", seed=SEED, provenance={"of": list(names)})
        validate(tmp_path / "out", spec)
        tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
        made: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            module, _, side = name.removeprefix("base_model.model.").partition(".lora_")
            made.setdefault(module, {})["A" if "A" in side else "B"] = tensor
        return {module: (sides["A"], sides["B"]) for module, sides in made.items()}, tmp_path / "out"

    return run


@pytest.fixture
def peft_merged(
    folders: dict[str, Path], base_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Pair]]:
    """PEFT's, by module, with the seed set when its new adapter exists and before anything is drawn."""
    from peft import PeftModel
    from peft.tuners.lora import model as lora_model
    from transformers import AutoModelForCausalLM

    reference: Any = lora_model
    freeze = reference._freeze_adapter

    def seeded(*arguments: Any) -> None:
        freeze(*arguments)
        torch.manual_seed(SEED)

    def run(names: Sequence[str], method: str, **options: Any) -> dict[str, Pair]:
        base: Any = AutoModelForCausalLM.from_pretrained(base_folder("llama"))
        model: Any = PeftModel.from_pretrained(base, str(folders[names[0]]), adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(str(folders[name]), adapter_name=name)
        monkeypatch.setattr(reference, "_freeze_adapter", seeded)
        model.add_weighted_adapter(list(names), WEIGHTS[: len(names)], "new", combination_type=method, **options)
        made = {}
        for name, module in model.named_modules():
            if "new" in getattr(module, "lora_A", {}):
                made[name] = module.lora_A["new"].weight.data, module.lora_B["new"].weight.data
            elif "new" in getattr(module, "lora_embedding_A", {}):
                made[name] = module.lora_embedding_A["new"].data, module.lora_embedding_B["new"].data
        return {name.removeprefix("base_model.model."): pair for name, pair in made.items()}

    return run


@pytest.mark.parametrize("names", [("plain", "embedding"), ("rslora", "plain", "embedding")], ids="+".join)
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (Recipe("linear"), {}),
        (Recipe("ties", 0.5), {"density": 0.5}),
        (Recipe("ties", 0.3, sign="frequency"), {"density": 0.3, "majority_sign_method": "frequency"}),
        (Recipe("dare_linear", 0.4), {"density": 0.4}),
        (Recipe("dare_ties", 0.7), {"density": 0.7}),
        (Recipe("dare_ties", 1.0), {"density": 1.0}),
    ],
    ids=lambda value: f"{value.method}-{value.density}" if isinstance(value, Recipe) else "",
)
def test_element_by_element_methods_equal_peft_bit_by_bit(
    names: tuple[str, ...],
    recipe: Recipe,
    options: dict[str, Any],
    merged: Callable[..., tuple[dict[str, Pair], Path]],
    peft_merged: Callable[..., dict[str, Pair]],
) -> None:
    ours, _ = merged(names, recipe)
    theirs = peft_merged(names, recipe.method, **options)
    assert ours.keys() == theirs.keys()
    for module, (a, b) in theirs.items():
        assert torch.equal(ours[module][0], a), module
        assert torch.equal(ours[module][1], b), module


@pytest.mark.parametrize("names", [("plain", "embedding"), ("rslora", "wide", "mixed")], ids="+".join)
@pytest.mark.parametrize("recipe", [Recipe("cat"), Recipe("svd"), Recipe("svd", rank=3)], ids=["cat", "svd", "svd3"])
def test_cat_and_svd_give_the_products_that_peft_gives(
    names: tuple[str, ...],
    recipe: Recipe,
    merged: Callable[..., tuple[dict[str, Pair], Path]],
    peft_merged: Callable[..., dict[str, Pair]],
) -> None:
    """Factors of a product may differ by a sign; PEFT pads cat's with zeros to the largest module's rank."""
    ours, _ = merged(names, recipe)
    theirs = peft_merged(names, recipe.method, **({"svd_rank": 3} if recipe.rank else {}))
    assert ours.keys() == theirs.keys()
    for module, (a, b) in theirs.items():
        torch.testing.assert_close(ours[module][1] @ ours[module][0], b @ a, rtol=1e-5, atol=1e-5)


def test_cat_is_exactly_the_weighted_sum_of_what_the_adapters_do(
    folders: dict[str, Path], spec_of: Specs, base_folder: Folders, merged: Callable[..., tuple[dict[str, Pair], Path]]
) -> None:
    """With rsLoRA first, PEFT's own is too strong by the root of its rank: it keeps use_rslora, with alpha = r."""
    names = ("rslora", "mixed", "embedding")
    ours, folder = merged(names, Recipe("cat"))
    parts = [
        open_part(name, weight, folders[name], spec_of("llama"), str(base_folder("llama")))
        for name, weight in zip(names, WEIGHTS, strict=True)
    ]
    for module, (a, b) in ours.items():
        wanted = torch.zeros(b.shape[0], a.shape[1])
        for part in parts:
            if pair := part.pairs.get(module):
                product = part.changes.tensor(pair.b) @ part.changes.tensor(pair.a)
                wanted += part.weight * pair.scale * product
        torch.testing.assert_close(b @ a, wanted, rtol=1e-5, atol=1e-5)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["use_rslora"]
    assert config["lora_alpha"] == config["r"]
    assert config["alpha_pattern"] == config["rank_pattern"]


def test_adapters_of_transposed_linears_are_combined_into_one_that_peft_loads(
    trained: Trained, base_folder: Folders, spec_of: Specs, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    spec, source = spec_of("gpt2"), str(base_folder("gpt2"))
    folder, model = trained("gpt2")
    merge_adapters([open_part("one", 1.0, folder, spec, source)], Recipe("cat"), spec, tmp_path / "out")
    validate(tmp_path / "out", spec)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    loader: Any = AutoModelForCausalLM
    combined = PeftModel.from_pretrained(loader.from_pretrained(source), tmp_path / "out").eval()
    tokens = torch.arange(16)[None]
    with torch.inference_mode():
        torch.testing.assert_close(combined(tokens).logits, model(tokens).logits)


def test_equal_inputs_give_equal_files_that_say_where_they_come_from(
    merged: Callable[..., tuple[dict[str, Pair], Path]],
) -> None:
    from safetensors import safe_open

    _, folder = merged(("plain", "rslora"), Recipe("dare_ties", 0.5))
    first = [path.read_bytes() for path in sorted(folder.iterdir())]
    _, folder = merged(("plain", "rslora"), Recipe("dare_ties", 0.5))
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == first
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()[METADATA]) == {"of": ["plain", "rslora"]}


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_keeps_the_density_and_the_expected_value(method: Method) -> None:
    ones = torch.ones(400, 500)
    pair = Weighted(ones, ones.T.contiguous(), 1.0)
    made, _ = combine([pair], Recipe(method, 0.25), torch.Generator().manual_seed(1))
    assert set(made.flatten().tolist()) == {0.0, 4.0}
    assert abs(float((made != 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / made.numel()) ** 0.5
    again, _ = combine([pair], Recipe(method, 0.25), torch.Generator().manual_seed(2))
    assert not torch.equal(made, again)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Unmergeable) as refused:
        call()
    return refused.value.rule


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"use_dora": True}, "combines-dora"),
        ({"lora_bias": True}, "combines-bias"),
        ({"modules_to_save": ["lm_head"]}, "combines-replaced"),
    ],
    ids=["dora", "lora_bias", "modules_to_save"],
)
def test_what_has_no_weighted_sum_is_refused_by_name(
    config: dict[str, Any], rule: str, trained: Trained, base_folder: Folders, spec_of: Specs
) -> None:
    folder, _ = trained("llama", **config)
    assert refusal(lambda: open_part("x", 1.0, folder, spec_of("llama"), str(base_folder("llama")))) == rule


@pytest.mark.parametrize("parameter", ["experts.down_proj", "gate.weight"])
def test_experts_and_routers_are_refused_by_name(
    parameter: str, trained: Trained, base_folder: Folders, spec_of: Specs
) -> None:
    folder, _ = trained("qwen3_moe", target_parameters=[parameter])
    assert refusal(lambda: open_part("x", 1.0, folder, spec_of("qwen3_moe"), str(base_folder("qwen3_moe")))) == (
        "combines-experts"
    )


def test_ranks_that_do_not_fit_are_refused_as_in_peft(
    merged: Callable[..., tuple[dict[str, Pair], Path]], peft_merged: Callable[..., dict[str, Pair]]
) -> None:
    for method in ("linear", "ties", "dare_linear", "dare_ties"):
        assert refusal(lambda method=method: merged(("plain", "wide"), Recipe(method, 0.5))) == "combines-ranks"  # type: ignore[misc]
        with pytest.raises(ValueError, match="same r value"):
            peft_merged(("plain", "wide"), method, density=0.5)
    assert refusal(lambda: merged(("plain", "mixed"), Recipe("linear"))) == "combines-ranks"
