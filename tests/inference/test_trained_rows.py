"""Added tokens, single tokens and names of earlier releases: files as PEFT writes them, answered as PEFT does."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from adapters.base import describe, kind
from adapters.errors import Rejected
from adapters.files import WEIGHTS
from adapters.validation import validate
from tests.inference.conftest import COMMON, Base, train
from tests.inference.test_variants import compare

ROWS = list(range(3, 90))
MORE = 3  # tokens that are added
SINGLE: dict[str, dict[str, Any]] = {
    "rows": {"trainable_token_indices": ROWS},
    "both": {"trainable_token_indices": {"embed_tokens": ROWS, "lm_head": ROWS}},
    "different": {"trainable_token_indices": {"embed_tokens": ROWS, "lm_head": [150, 7]}},
    "head": {"trainable_token_indices": {"lm_head": ROWS}},
    "beside-head": {"trainable_token_indices": ROWS, "target_modules": ["lm_head", "v_proj"]},
    "beside-dora": {"trainable_token_indices": ROWS, "use_dora": True},
}


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("llama", True), ("gemma", True)], ids=str)
def test_single_tokens_that_were_trained_are_served(workshop: Any, architecture: str, tied: bool) -> None:
    base = workshop.base(architecture, tie_word_embeddings=tied)
    configs = {f"single-{name}": {"r": 4, "target_modules": ["q_proj"], **config} for name, config in SINGLE.items()}
    compare(workshop, base, {name: workshop.adapter(base, name, **config) for name, config in configs.items()})


def resized(workshop: Any, base: Base, folder: Path) -> Base:
    """The same base with room for tokens that were added, as it is in training and has to be served."""
    if not folder.exists():
        torch.manual_seed(0)
        model = base.oracle(None)
        model.resize_token_embeddings(workshop.vocabulary + MORE)
        model.save_pretrained(folder)
    return Base(folder)


def grown(workshop: Any, small: Base, folder: Path, seed: str, **config: Any) -> Path:
    """An adapter of the resized base, saved as PEFT does by default while its config names the smaller one."""
    if not folder.exists():
        torch.manual_seed(sum(seed.encode()))
        model = resized(workshop, small, folder.parent / "resized").oracle(None)
        model.name_or_path = str(small.folder)
        options: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False} | config
        peft: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        train(peft)
        peft.save_pretrained(folder)
    return folder


GROWN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "rows": {"trainable_token_indices": [5, 198, 200]},
    "rows-of-both": {"trainable_token_indices": {"embed_tokens": [5, 200], "lm_head": [200, 201]}},
    "lora": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("tied", [False, True])
def test_a_base_with_the_added_tokens_serves_what_peft_writes_three_times(
    workshop: Any, tied: bool, tmp_path: Path
) -> None:
    small = workshop.base("llama", tie_word_embeddings=tied)
    adapters = {name: grown(workshop, small, tmp_path / name, name, **config) for name, config in GROWN.items()}
    names = load_file(adapters["both"] / WEIGHTS)
    assert {f"base_model.model.lm_head.{part}weight" for part in ("", "modules_to_save.", "original_module.")} <= {
        *names
    }
    base = resized(workshop, small, tmp_path / "resized")
    compare(workshop, base, adapters)
    for name in ("embedding", "head"):  # with each of the copies another, it is seen which of them are read
        changed = Path(shutil.copytree(adapters[name], tmp_path / f"{name}-changed"))
        tensors = load_file(changed / WEIGHTS)
        copies = [each for each in tensors if ".modules_to_save." in each or ".original_module." in each]
        for number, copy in enumerate(copies, 1):
            tensors[copy] = tensors[copy] + 0.1 * number
        save_file(tensors, changed / WEIGHTS)
        compare(workshop, base, {f"{name}-changed": changed})


@pytest.mark.parametrize("name", sorted(GROWN))
def test_a_base_without_the_added_tokens_says_how_many_and_what_to_serve(
    workshop: Any, name: str, tmp_path: Path
) -> None:
    small = workshop.base("llama")
    adapter = grown(workshop, small, tmp_path / name, name, **GROWN[name])
    with pytest.raises(Rejected) as refusal:
        validate(adapter, describe(str(small.folder)))
    (found,) = refusal.value.findings
    assert (found.rule, found.expected, found.found) == ("added-tokens", "199 tokens", "202 tokens")
    assert "3 tokens were added" in found.message
    assert "resize_token_embeddings(202)" in found.message


def test_tokens_beyond_the_vocabulary_are_added_ones_too(workshop: Any, tmp_path: Path) -> None:
    small = workshop.base("llama")
    adapter = grown(workshop, small, tmp_path / "rows", "rows", **GROWN["rows"])
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: t for name, t in tensors.items() if "delta" in name or "lora_" in name}, adapter / WEIGHTS)
    with pytest.raises(Rejected) as refusal:
        validate(adapter, describe(str(small.folder)))
    assert [(found.rule, found.found) for found in refusal.value.findings] == [("added-tokens", "at least 201 tokens")]


GEMMA = {
    "text_config": {**COMMON, "num_hidden_layers": 2, "sliding_window": 24, "query_pre_attn_scalar": 16},
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    },
    "mm_tokens_per_image": 4, "image_token_index": 190, "boi_token_index": 191, "eoi_token_index": 192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("today", "then"),
    [
        ("model.language_model.", "language_model.model."),
        ("model.language_model.", "model.language_model.model."),
    ],
)
def test_names_of_transformers_4_are_read_as_peft_reads_them(
    workshop: Any, today: str, then: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma3", **GEMMA)
    model = kind(config).from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    base = Base(tmp_path / "base")
    peft: Any = get_peft_model(base.oracle(None), LoraConfig(
        task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=r".*language_model.*(q_proj|down_proj)",
    ))  # fmt: skip
    train(peft)
    peft.save_pretrained(tmp_path / "new")
    old = Path(shutil.copytree(tmp_path / "new", tmp_path / "old"))
    tensors = load_file(old / WEIGHTS)
    assert all(name.startswith(f"base_model.model.{today}") for name in tensors)
    save_file({name.replace(today, then, 1): tensor for name, tensor in tensors.items()}, old / WEIGHTS)
    driver = workshop.engine(base, {"old": old}, blocks=64)
    prompts = [[token % 180 + 3 for token in workshop.prompt(length)] for length in (5, 40)]
    asked = [driver.submit(prompt, "old", max_tokens=4) for prompt in prompts]
    driver.run()
    assert [driver.tokens(sequence) for sequence in asked] == base.answers(old, prompts, 4)
    assert base.answers(old, prompts, 4) == base.answers(tmp_path / "new", prompts, 4)
