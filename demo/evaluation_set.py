"""Prints an evaluation set of a demo task's held-out samples: python demo/evaluation_set.py support 40 > support.jsonl

--scorer log-likelihood asks how likely the right answers are instead of whether they are given.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.tasks import TASKS, samples


def lines(task: str, count: int, scorer: str) -> Iterator[str]:
    for sample in itertools.islice(samples(task, "held-out", seed=1), count):
        messages = [{"role": "user", "content": sample.prompt}]
        bound = {} if scorer == "log-likelihood" else {"max_tokens": 128}
        item = {"messages": messages, "scorer": scorer, "expected": sample.answer, **bound}
        yield json.dumps(item, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("count", type=int, nargs="?", default=40)
    parser.add_argument("--scorer", choices=("exact", "log-likelihood"), default="exact")
    asked = parser.parse_args()
    print("\n".join(lines(asked.task, asked.count, asked.scorer)))


if __name__ == "__main__":
    main()
