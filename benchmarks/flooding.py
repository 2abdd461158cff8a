"""What a tenant waits for beside one that holds every row, on a real model: `python -m benchmarks.flooding`.

One tenant's long answers fill all rows and more of them are queued; another asks now and then for a token. Counted are
steps from asking to the first token, the one under way included, and the tokens that all generate in a step: neither
changes with how busy the machine is, as tokens a second do.
"""

import argparse
import itertools
import math
import random
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch

from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.engine import Engine
from inference.engine.runner import Runner
from inference.engine.scheduler import Event, Limits, Scheduler, Token
from inference.engine.sequence import Sequence
from inference.engine.yielding import QUANTUM
from inference.lora.slots import SlotPool
from inference.lora.weights import AdapterWeights
from inference.models.load import Model, load

BLOCK = 16
DEMO = Path(__file__).resolve().parent.parent / "demo" / "base"


class Flood:
    """An engine on its own thread, whose rows one tenant has taken."""

    def __init__(self, model: Model, rows: int, queued: int, quantum: float) -> None:
        spec = model.spec
        limits = Limits(spec.context_length, spec.vocab_size, rows, quantum=quantum)
        blocks = rows * spec.context_length // BLOCK
        slots = SlotPool(1, model.sites, _no_adapter)
        self._first: dict[Sequence, tuple[threading.Event, list[int]]] = {}
        self._ids, self._draw, self._vocabulary = itertools.count(), random.Random(1), spec.vocab_size  # noqa: S311
        self.engine = Engine(
            Scheduler(limits, BlockPool(blocks, BLOCK), slots), Runner(model, blocks, BLOCK), self._hear
        )
        for _ in range(queued):
            self.engine.submit(self._sequence("greedy", 32, self._draw.randint(200, 400)))
        self.engine.start()

    def steps(self) -> int:
        """Count the engine's steps from another tenant's request for one token to that token."""
        sequence = self._sequence("modest", 64, 1)
        came, at = self._first[sequence] = threading.Event(), list[int]()
        before = self.engine.steps
        self.engine.submit(sequence)
        came.wait()
        return at[0] - before

    def _sequence(self, share: str, prompt: int, tokens: int) -> Sequence:
        ids = [self._draw.randrange(self._vocabulary) for _ in range(prompt)]
        return Sequence(next(self._ids), ids, Sampling(tokens, temperature=0, ignore_eos=True), share=share)

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Token) and (waiting := self._first.pop(event.sequence, None)):
                waiting[1].append(self.engine.steps)
                waiting[0].set()


def _no_adapter(digest: str) -> Future[AdapterWeights]:
    raise AssertionError("nobody asked for an adapter")


def measure(flood: Flood, seconds: float, ask: Callable[[], int] | None) -> tuple[list[int], float, float]:
    """Steps until each first token; and the tokens that were generated, a step and a second."""
    time.sleep(3)
    engine, start, waited = flood.engine, time.monotonic(), list[int]()
    steps, tokens = engine.steps, engine.generated_tokens
    while time.monotonic() < start + seconds:
        time.sleep(0.5 + random.random() / 5)  # noqa: S311
        if ask is not None:
            waited.append(ask())
    made = engine.generated_tokens - tokens
    return waited, made / max(1, engine.steps - steps), made / (time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--queued", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    model = load(told.model, torch.device("cpu"), torch.float32, 1)
    cases = {"alone": (0, QUANTUM), "flood": (told.queued, QUANTUM), "never yields": (told.queued, math.inf)}
    cases["yields"] = (told.queued, QUANTUM)
    for number in range(told.rounds):
        for name, (queued, quantum) in cases.items():
            flood = Flood(model, told.rows, queued, quantum)
            steps, a_step, a_second = measure(flood, told.seconds, None if name == "flood" else flood.steps)
            flood.engine.stop()
            quantiles = statistics.quantiles(steps, n=20, method="inclusive") if len(steps) > 1 else [0.0] * 19
            print(
                f"round {number + 1}  {name:12}  asked {len(steps):3}"
                f"  steps p50 {quantiles[9]:5.1f} p95 {quantiles[18]:5.1f}"
                f"  tokens a step {a_step:6.2f}  a second {a_second:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
