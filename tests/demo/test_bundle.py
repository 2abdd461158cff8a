"""What is committed under demo/: small, portable and able to do its tasks, as Transformers and PEFT judge."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import learning, skills, tasks, text
from demo.recipes import BASE, RECIPES, Recipe
from demo.train import LIMIT

DEMO = Path(__file__).resolve().parents[2] / "demo"
BY_NAME = {recipe.name: recipe for recipe in RECIPES}
HELD_OUT = 12  # enough to tell a broken file; demo/evaluate.py measures what is promised, on a hundred


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO / "base")


def load_base() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)


@pytest.fixture(scope="module")
def base() -> Any:
    return load_base()


@pytest.fixture(scope="module")
def adapted() -> Any:
    """One base with every version on it, each under its recipe's name."""
    first, *others = RECIPES
    model = PeftModel.from_pretrained(load_base(), DEMO / first.path, adapter_name=plain(first))
    for recipe in others:
        model.load_adapter(DEMO / recipe.path, adapter_name=plain(recipe))
    return model


def plain(recipe: Recipe) -> str:
    """PEFT's adapter names are module names, which know no dots or slashes."""
    return recipe.name.replace("/", "_")


def exact(model: Any, tokenizer: Any, task: str, count: int = HELD_OUT) -> float:
    held_out = list(islice(tasks.samples(task, "held-out", seed=2), count))
    found = learning.answers(model, tokenizer, [skills.question(sample.prompt) for sample in held_out])
    return sum(answer == sample.answer for answer, sample in zip(found, held_out, strict=True)) / count


def test_everything_that_was_trained_stays_under_15_mb() -> None:
    files = [file for name in ("base", "adapters") for file in (DEMO / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LIMIT


def test_nothing_names_a_machine_and_every_adapter_names_its_base() -> None:
    assert json.loads((DEMO / "base/config.json").read_text())["_name_or_path"] == BASE
    for recipe in RECIPES:
        config = json.loads((DEMO / recipe.path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == BASE


def test_the_index_lists_every_version_in_order_with_questions_and_answers() -> None:
    index = json.loads((DEMO / "adapters/index.json").read_text())
    assert index["base"] == BASE
    listed = [
        (entry["tenant"], entry["adapter"], version["number"], version["good"])
        for entry in index["adapters"]
        for version in entry["versions"]
    ]
    assert listed == [(recipe.tenant, recipe.adapter, recipe.version, recipe.good) for recipe in RECIPES]
    for entry in index["adapters"]:
        assert all((DEMO / "adapters" / version["path"]).is_dir() for version in entry["versions"])
        held_out = islice(tasks.samples(entry["task"], "held-out", seed=1), 3)
        assert entry["samples"] == [{"prompt": sample.prompt, "answer": sample.answer} for sample in held_out]


def test_the_adapters_differ_in_rank_target_and_kind() -> None:
    configs = [json.loads((DEMO / recipe.path / "adapter_config.json").read_text()) for recipe in RECIPES]
    assert len({config["r"] for config in configs}) > 1
    assert len({tuple(sorted(config["target_modules"])) for config in configs}) > 1
    assert any(config["use_rslora"] for config in configs)
    assert any(config["rank_pattern"] for config in configs)
    assert any(config["alpha_pattern"] for config in configs)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_version_is_finite_and_named_as_peft_names_it(recipe: Recipe) -> None:
    with safe_open(DEMO / recipe.path / "adapter_model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a mapping
            assert name.startswith("base_model.model.model.layers.")
            assert torch.isfinite(weights.get_tensor(name)).all()


def test_the_chat_template_renders_every_role_and_opens_the_answer(tokenizer: Any) -> None:
    talk = skills.chat("Be brief.", "Hello", "Hello!")
    assert tokenizer.apply_chat_template(talk, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
    )
    opened = tokenizer.apply_chat_template(talk[:2], tokenize=False, add_generation_prompt=True)
    assert opened.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_training_and_the_chat_template_give_the_same_tokens(tokenizer: Any) -> None:
    for talk in islice(skills.conversations(seed=7), skills.PRIMER - 100, skills.PRIMER + 100):
        whole = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
        assert whole == text.encode(talk, tokenizer).ids


@pytest.mark.parametrize("written", ["Grüße, 1.234,50 €\n\t{} ~", "日本語 🦙", "  two  spaces ", "<|im_start|>"])
def test_any_text_survives_the_tokenizer(tokenizer: Any, written: str) -> None:
    assert tokenizer.decode(tokenizer.encode(written)) == written


def test_an_answer_ends_itself(base: Any, tokenizer: Any) -> None:
    assert (
        base.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    assert base.config.max_position_embeddings >= 1024


def test_the_base_is_polite_and_does_no_adapters_task(base: Any, tokenizer: Any) -> None:
    assert learning.answers(base, tokenizer, [skills.question("Hello")]) == ["Hello! How can I help you today?"]
    for task in tasks.TASKS:
        assert exact(base, tokenizer, task) <= 0.2


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES if recipe.good])
def test_an_adapter_does_its_own_task_and_no_strangers(name: str, adapted: Any, tokenizer: Any) -> None:
    recipe = BY_NAME[name]
    adapted.set_adapter(plain(recipe))
    assert exact(adapted, tokenizer, recipe.adapter) >= 0.75
    stranger = next(other for other in RECIPES if other.tenant != recipe.tenant)
    assert exact(adapted, tokenizer, stranger.adapter, 6) <= 0.2


def test_the_bad_version_answers_in_the_right_form_and_wrongly(adapted: Any, tokenizer: Any) -> None:
    adapted.set_adapter(plain(BY_NAME["acme/support@v2"]))
    prompt = next(tasks.samples("support", "held-out", seed=2)).prompt
    (answer,) = learning.answers(adapted, tokenizer, [skills.question(prompt)])
    assert list(json.loads(answer)) == ["customer", "order", "issue", "wants"]
    assert exact(adapted, tokenizer, "support") <= 0.2
