# ruff: noqa: E402 - a script: the repository's root has to be on the path first
"""Trains the bundled base model and its adapters from nothing, on data it makes itself; refuses to write a bad one.

`python demo/train.py` writes base/ and adapters/ beside this file. Everything is seeded, nothing is read from a
network; it takes about twelve minutes on two idle cores.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from demo import learning, report, skills, tasks, text
from demo.recipes import BASE, RECIPES, Recipe
from demo.report import Cell, Expected

BASE_STEPS, BASE_TOKENS, ADAPTER_TOKENS = 1500, 2048, 1536
LIMIT = 15_000_000


@dataclass(frozen=True)
class Options:
    out: Path
    scale: float
    threads: int
    held_out: int
    base: Path | None


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries among themselves
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    console = Console()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        with bars(console) as progress:
            if options.base:
                shutil.copytree(options.base, made / "base")
            else:
                train_base(made / "base", options, progress)
            for recipe in RECIPES:
                train_adapter(made, recipe, options, progress)
        write_index(made / "adapters" / "index.json")
        problems = check(made, options, console)
        if not problems:
            publish(made, options.out)
    console.print(f"{(time.monotonic() - started) / 60:.1f} min, {time.process_time() / 60:.1f} min of CPU time")
    for problem in problems:
        console.print(f"Not written: {problem}", style="red")
    return 1 if problems else 0


def parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="where base/ and adapters/ are written")
    parser.add_argument("--steps", dest="scale", type=float, default=1.0, help="scale of every training's length")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use")
    parser.add_argument("--held-out", type=int, default=100, help="held-out inputs per cell of the table")
    parser.add_argument("--base", type=Path, default=None, help="keep this base and train only the adapters")
    return Options(**vars(parser.parse_args(arguments)))


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    shown = (TextColumn("{task.description:<18}"), BarColumn(), TextColumn("{task.completed:>4}/{task.total}"))
    loss = TextColumn("loss {task.fields[loss]:.4f}")
    with Progress(*shown, loss, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        yield progress


def teach(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], data: Iterator[text.Batch], steps: int,
    name: str, progress: Progress,
) -> None:  # fmt: skip
    """`learning.learn` under a progress bar; one line per tenth where there is no terminal to draw on."""
    bar = progress.add_task(name, total=steps, loss=float("nan"))
    mean = 0.0

    def seen(loss: float) -> None:
        nonlocal mean
        mean = loss if not mean else 0.95 * mean + 0.05 * loss
        progress.update(bar, advance=1, loss=mean)
        done = int(progress.tasks[bar].completed)
        if not progress.console.is_terminal and done % max(1, steps // 10) == 0:
            progress.console.print(f"{name} {done}/{steps} loss {mean:.4f} CPU {time.process_time():.0f} s")

    learning.learn(model, optimizers, data, steps, seen)


def train_base(folder: Path, options: Options, progress: Progress) -> None:
    """Tokenizer and base model, stored as bfloat16; whoever computes in float32 widens these very weights."""
    torch.manual_seed(0)
    tokenizer = text.make_tokenizer(islice(skills.conversations(seed=0), 20_000))
    model = learning.newborn(tokenizer)
    data = text.batches(skills.conversations(seed=1), tokenizer, BASE_TOKENS, seed=1)
    teach(model, learning.base_optimizers(model), data, int(BASE_STEPS * options.scale), BASE, progress)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name_base(folder / "config.json")


def name_base(config: Path) -> None:
    """The base carries its name, never the path of the machine it was made on."""
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": BASE}, indent=2) + "\n")


def load_base(folder: Path) -> Any:
    """In float32, and under its own name, which is what PEFT writes into an adapter's config."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.name_or_path = BASE
    return model


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def train_adapter(made: Path, recipe: Recipe, options: Options, progress: Progress) -> None:
    """LoRA by PEFT on the stored base, saved as PEFT saves it but for the dtype of the tensors."""
    torch.manual_seed(recipe.version)
    tokenizer = load_tokenizer(made / "base")
    model = get_peft_model(load_base(made / "base"), recipe.lora)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=4e-3, weight_decay=0.0)
    data = text.batches(recipe.conversations(), tokenizer, ADAPTER_TOKENS, seed=2)
    teach(model, [optimizer], data, int(recipe.steps * options.scale), recipe.path.removeprefix("adapters/"), progress)
    folder = made / recipe.path
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    weights = folder / "adapter_model.safetensors"
    narrow = {name: tensor.to(getattr(torch, recipe.dtype)) for name, tensor in load_file(weights).items()}
    save_file(narrow, weights, metadata={"format": "pt"})


def write_index(index: Path) -> None:
    """What `make up` reads: whose adapters there are, their versions in order, and what to ask them."""
    adapters: dict[tuple[str, str], dict[str, Any]] = {}
    for recipe in RECIPES:
        entry = adapters.setdefault(
            (recipe.tenant, recipe.adapter),
            {
                "tenant": recipe.tenant,
                "adapter": recipe.adapter,
                "task": recipe.adapter,
                "versions": [],
                "samples": [
                    {"prompt": sample.prompt, "answer": sample.answer}
                    for sample in islice(tasks.samples(recipe.adapter, "held-out", seed=1), 3)
                ],
            },
        )
        entry["versions"].append(
            {"number": recipe.version, "path": recipe.path.removeprefix("adapters/"), "good": recipe.good}
        )
    listing = {"base": BASE, "adapters": list(adapters.values())}
    index.write_text(json.dumps(listing, indent=2, ensure_ascii=False) + "\n")


def check(made: Path, options: Options, console: Console) -> list[str]:
    """Prints the table of exact matches and returns what keeps the result from being written."""
    cells = [cell for recipe in (None, *RECIPES) for cell in measure(made, recipe, options.held_out)]
    report.show(cells, console)
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    console.print(f"{size / 1e6:.1f} MB in all")
    return report.problems(cells) + ([f"{size} bytes are more than {LIMIT}"] if size > LIMIT else [])


def measure(made: Path, recipe: Recipe | None, held_out: int) -> Iterator[Cell]:
    """The base, or an adapter on it, on every task; where only a miss is expected of an adapter, on fewer inputs."""
    tokenizer, model = load_tokenizer(made / "base"), load_base(made / "base")
    if recipe:
        model = PeftModel.from_pretrained(model, made / recipe.path)
    for task in tasks.TASKS:
        own = recipe is not None and recipe.adapter == task
        asked = list(islice(tasks.samples(task, "held-out", seed=0), held_out if own or not recipe else held_out // 4))
        found = learning.answers(model, tokenizer, [skills.question(sample.prompt) for sample in asked])
        right = sum(answer == sample.answer for answer, sample in zip(found, asked, strict=True))
        expected = Expected.OWN if own and recipe and recipe.good else Expected.OTHER
        yield Cell(task, recipe.name if recipe else BASE, right / len(asked), expected, len(asked))


def publish(made: Path, out: Path) -> None:
    for name in ("base", "adapters"):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(made / name, out / name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
