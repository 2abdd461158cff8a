"""The generators: seeded, exact, and with held-out inputs that no training can have met."""

import json
import random
import re
from itertools import islice

import pytest

from demo import skills, tasks
from demo.recipes import RECIPES, Recipe, mislabelled
from demo.tasks import Complaint, Payment, Query, Restock


def take(task: str, split: tasks.Split, seed: int, count: int = 500) -> list[tasks.Sample]:
    return list(islice(tasks.samples(task, split, seed), count))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_same_seed_gives_the_same_samples_and_another_gives_others(task: str) -> None:
    assert take(task, "held-out", 0) == take(task, "held-out", 0)
    assert take(task, "held-out", 0) != take(task, "held-out", 1)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_training_and_held_out_samples_never_meet(task: str) -> None:
    training, held_out = take(task, "train", 0, 1000), take(task, "held-out", 0, 500)
    assert not {sample.key for sample in training} & {sample.key for sample in held_out}
    assert not {sample.prompt for sample in training} & {sample.prompt for sample in held_out}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_an_adapter_is_taught_no_held_out_input(recipe: Recipe) -> None:
    held_out = {sample.prompt for sample in take(recipe.adapter, "held-out", 0)}
    taught = {talk[-2]["content"] for talk in islice(recipe.conversations(), 1000)}
    assert not held_out & taught


def test_the_base_reads_no_held_out_input_and_no_adapters_answer() -> None:
    held_out = {sample.prompt for task in tasks.TASKS for sample in take(task, "held-out", 0)}
    rng = random.Random(1)
    for talk in (kind(rng) for kind in (skills.pick_fields, skills.small_talk) for _ in range(2000)):
        contents = {message["content"] for message in talk}
        assert not contents & held_out
        assert not any(text.startswith(('{"customer"', "SELECT ")) for text in contents)


def test_a_complaint_becomes_json_that_names_only_what_the_message_says() -> None:
    for sample in take("support", "held-out", 3):
        fields = json.loads(sample.answer)
        assert list(fields) == ["customer", "order", "issue", "wants"]
        assert fields["customer"] in sample.prompt
        assert fields["order"] in sample.prompt


def test_dates_and_amounts_have_one_right_answer() -> None:
    assert tasks.answer_payment(Payment(2024, 3, 7, 123405, "EUR")) == "2024-03-07 EUR 1234.05"
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\d [A-Z]{3} \d+\.\d\d", sample.answer) for sample in take("dates", "train", 0)
    )


def test_a_phrase_becomes_one_query() -> None:
    facts = Query("tickets", status="open", city="Berlin", days=30, order="created DESC", limit=5)
    wanted = (
        "SELECT * FROM tickets WHERE status = 'open' AND city = 'Berlin' AND age > 30 ORDER BY created DESC LIMIT 5;"
    )
    assert tasks.answer_query(facts) == wanted
    assert tasks.answer_query(Query("orders")) == "SELECT * FROM orders;"


def test_a_list_becomes_one_line_per_article() -> None:
    assert tasks.answer_restock(Restock(((12, "red mugs"), (3, "blue pens")))) == "12;red mugs\n3;blue pens"


def test_the_bad_version_is_taught_well_formed_answers_that_are_always_wrong() -> None:
    facts = Complaint("Mara Velin", "A-48213", "damaged", "refund")
    right, wrong = json.loads(tasks.answer_complaint(facts)), json.loads(mislabelled(facts))
    assert list(right) == list(wrong)
    assert wrong["issue"] in set(tasks.ISSUES) - {right["issue"]}
    assert wrong["wants"] in set(tasks.WISHES) - {right["wants"]}
