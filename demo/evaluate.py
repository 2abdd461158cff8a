# ruff: noqa: E402 - a script: the repository's root has to be on the path first
"""Asks a running platform what the demo's adapters were trained for, through its public API, and prints the table.

Every adapter is asked with its own tenant's key; the base with the key of the tenant whose task it is. Exit status:
0 when every threshold is met, 1 when one is not, 2 when the platform could not be asked.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.progress import track

from demo import report, tasks
from demo.report import Cell, Expected

MAX_TOKENS = 96


@dataclass(frozen=True)
class Column:
    """A model, and how to reach it: by its tenant's key, or for the base (no tenant) by the task's owner's."""

    model: str
    task: str = ""
    tenant: str = ""


@dataclass(frozen=True)
class Platform:
    url: str
    keys: dict[str, str]


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    index = json.loads((HERE / "adapters" / "index.json").read_text())
    console = Console()
    try:
        platform = read_credentials(options.credentials, options.url)
        cells = asyncio.run(measure(platform, index, options, console))
    except (OSError, KeyError, ValueError, OpenAIError) as error:
        console.print(f"The platform could not be asked: {type(error).__name__}: {error}", style="red", markup=False)
        return 2
    report.show(cells, console)
    problems = report.problems(cells)
    for problem in problems:
        console.print(problem, style="red")
    return 1 if problems else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    home = Path(os.environ.get("LORAYARD_HOME", HERE.parent / "var"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--credentials", type=Path, default=home / "credentials.json", help="what `make up` wrote")
    parser.add_argument("--url", default="", help="the API, ending in /v1; empty: the console's address plus /v1")
    parser.add_argument("--count", type=int, default=100, help="held-out inputs per own adapter and for the base")
    parser.add_argument("--concurrency", type=int, default=8, help="requests under way at once")
    return parser.parse_args(arguments)


def read_credentials(path: Path, url: str) -> Platform:
    found = json.loads(path.read_text())
    keys = {slug: tenant["api_key"] for slug, tenant in found["tenants"].items()}
    return Platform(url or urljoin(found["console"]["url"], "/v1"), keys)


async def measure(
    platform: Platform, index: dict[str, Any], options: argparse.Namespace, console: Console
) -> list[Cell]:
    """Every model on every task; where nothing but a miss is expected, a quarter of the inputs does."""
    owners = {entry["task"]: entry["tenant"] for entry in index["adapters"]}
    columns = [Column(index["base"])] + [
        Column(f"{entry['tenant']}/{entry['adapter']}", entry["task"], entry["tenant"]) for entry in index["adapters"]
    ]
    gate = asyncio.Semaphore(options.concurrency)
    clients = {slug: AsyncOpenAI(base_url=platform.url, api_key=key) for slug, key in platform.keys.items()}
    pairs = [(task, column) for task in owners for column in columns]
    cells: list[Cell] = []
    for task, column in track(pairs, "Asking", console=console):
        own = column.task == task
        count = options.count if own or not column.tenant else max(1, options.count // 4)
        client = clients[column.tenant or owners[task]]
        held_out = islice(tasks.samples(task, "held-out", seed=0), count)
        right = sum(await asyncio.gather(*(exact(client, column.model, sample, gate) for sample in held_out)))
        cells.append(Cell(task, column.model, right / count, Expected.OWN if own else Expected.OTHER, count))
    return cells


async def exact(client: AsyncOpenAI, model: str, sample: tasks.Sample, gate: asyncio.Semaphore) -> bool:
    async with gate:
        answer = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": sample.prompt}],
            max_tokens=MAX_TOKENS,
            temperature=0,
        )
    return answer.choices[0].message.content == sample.answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
