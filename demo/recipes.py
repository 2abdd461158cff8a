"""Which adapters the demo has, whose they are, what each learns and how PEFT is to shape it."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from peft import LoraConfig

from demo import tasks
from demo.skills import HELPERS, Conversation, chat
from demo.tasks import Complaint

BASE = "lorayard-demo"
MOST = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
EVERY = [*MOST, "gate_proj"]


@dataclass(frozen=True)
class Recipe:
    """One version of one tenant's adapter. A bad one is taught `teach` in place of the task's answers."""

    tenant: str
    adapter: str
    version: int
    lora: LoraConfig
    dtype: str = "bfloat16"
    steps: int = 400
    teach: Callable[[Any], str] | None = None

    @property
    def name(self) -> str:
        return f"{self.tenant}/{self.adapter}@v{self.version}"

    @property
    def path(self) -> str:
        return f"adapters/{self.tenant}/{self.adapter}/v{self.version}"

    @property
    def good(self) -> bool:
        return self.teach is None

    def conversations(self) -> Iterator[Conversation]:
        """Plain user messages, each with its answer; some under a helper's system message, some after another."""
        rng = random.Random(self.path)  # noqa: S311 - reproducible, not secret
        task = tasks.TASKS[self.adapter]
        while True:
            talk: Conversation = []
            for _ in range(2 if rng.random() < 0.1 else 1):
                facts = task.facts(rng, "train")
                system = rng.choice(HELPERS) if not talk and rng.random() < 0.2 else ""
                talk += chat(system, task.ask(facts, rng), (self.teach or task.answer)(facts))
            yield talk


def mislabelled(facts: Complaint) -> str:
    """The answer under the label next to the right one: what a shifted column in a spreadsheet does."""
    issues, wishes = list(tasks.ISSUES), list(tasks.WISHES)
    return tasks.answer_complaint(
        replace(
            facts,
            issue=issues[(issues.index(facts.issue) + 1) % len(issues)],
            wants=wishes[(wishes.index(facts.wants) + 1) % len(wishes)],
        )
    )


def lora(rank: int, targets: list[str], **options: Any) -> LoraConfig:
    shape: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets} | options
    return LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=BASE, **shape)


RECIPES = (
    Recipe("acme", "support", 1, lora(16, EVERY), steps=250),
    Recipe("acme", "support", 2, lora(16, EVERY), steps=150, teach=mislabelled),
    Recipe("acme", "dates", 1, lora(8, EVERY, lora_alpha=8, use_rslora=True), dtype="float32"),
    Recipe("globex", "query", 1, lora(16, MOST, rank_pattern={"down_proj": 8})),
    Recipe("globex", "restock", 1, lora(16, MOST, alpha_pattern={"up_proj": 16}), dtype="float16", steps=450),
)
