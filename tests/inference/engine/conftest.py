"""An engine without a model: its runner computes, so that a mis-routed row shows."""

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.engine import Engine
from inference.engine.scheduler import Begun, Ended, Event, Limits, Plan, Sampled, Scheduler, Token
from inference.engine.sequence import Sequence
from inference.lora.slots import SlotPool
from inference.lora.weights import AdapterWeights

STOP = 999
PLACE = ("salt", "weight", "priority", "start_by", "window")  # options of a sequence; the others are of its sampling


@dataclass
class Echo:
    """A model that answers each token with the next number, plus 1000 for the adapter that sits in the row's slot.

    Every plan has a slot for each of its adapters; an adapter never has two.
    """

    installed: dict[int, str] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    fails: bool = False
    finite: bool = True

    def run(self, plan: Plan) -> list[Sampled | None]:
        self.plans.append(plan)
        assert plan.adapters == len({row.sequence.digest for row in plan.rows} - {""}), "adapters share a slot"
        if self.fails:
            raise RuntimeError("the model is broken")
        return [Sampled(self._answer(row.sequence), finite=self.finite) if row.samples else None for row in plan.rows]

    def install(self, slot: int, weights: Any) -> None:
        self.installed[slot] = weights.digest

    def clear(self, slot: int) -> None:
        self.installed.pop(slot, None)

    def _answer(self, sequence: Sequence) -> int:
        if sequence.digest:
            assert self.installed[sequence.slot] == sequence.digest, "a row runs on another adapter's slot"
        return sequence.tokens[-1] % 1000 + 1 + (1000 if sequence.digest else 0)


@dataclass(frozen=True)
class Named:
    digest: str
    pairs: Any = None
    nbytes: int = 10


@dataclass
class Bench:
    """A scheduler on the echo model. Loads finish when the test says so, unless `instant`."""

    echo: Echo
    engine: Engine
    scheduler: Scheduler
    slots: SlotPool
    now: list[float]
    loads: dict[str, Future[AdapterWeights]]
    events: list[Event]
    ids: Any = field(default_factory=itertools.count)

    def submit(self, prompt: int = 4, digest: str = "", share: str = "a", tokens: int = 4, **options: Any) -> Sequence:
        place = {name: options.pop(name) for name in PLACE if name in options}
        first = options.pop("first", 10)
        sampling = Sampling(max_tokens=tokens, temperature=0, **options)
        ids = [first + n for n in range(prompt)]
        sequence = Sequence(next(self.ids), ids, sampling, digest, share, **place)
        self.scheduler.admissible(sequence.prompt, sequence.sampling)
        self.engine.submit(sequence)
        return sequence

    def steps(self, count: int = 1) -> None:
        for _ in range(count):
            self.engine.step()

    def finish(self, most: int = 5000) -> None:
        for _ in range(most):
            if not self.engine.step() and not self.scheduler.live:
                return
        pytest.fail("the requests did not end")

    def loaded(self, digest: str) -> None:
        self.loads.pop(digest).set_result(Named(digest))  # type: ignore[arg-type]

    def ended(self, sequence: Sequence) -> Ended | None:
        return next((e for e in self.events if isinstance(e, Ended) and e.sequence is sequence), None)

    def waiting(self) -> set[Sequence]:
        return self.scheduler.live - set(self.scheduler.running)

    def begun(self) -> list[Sequence]:
        return [event.sequence for event in self.events if isinstance(event, Begun)]

    def tokens(self, sequence: Sequence) -> list[int]:
        return [e.token for e in self.events if isinstance(e, Token) and e.sequence is sequence]


@pytest.fixture
def bench() -> Callable[..., Bench]:
    def build(
        *,
        blocks: int = 64,
        size: int = 4,
        slots: int = 2,
        instant: bool = True,
        patience: float = 1.0,
        costs: Mapping[str, float] | None = None,
        **limits: Any,
    ) -> Bench:
        echo, now, loads = Echo(), [0.0], dict[str, Future[AdapterWeights]]()

        def load(digest: str) -> Future[AdapterWeights]:
            future: Future[AdapterWeights] = Future()
            future.set_running_or_notify_cancel()
            if instant:
                future.set_result(Named(digest))  # type: ignore[arg-type]
            else:
                loads[digest] = future
            return future

        def cost(weights: Any) -> float:
            return (costs or {}).get(weights.digest, 1.0)

        pool = SlotPool(slots, echo, load, patience, lambda: now[0], cost=cost)
        bounds = Limits(**({"context": 64, "vocabulary": 3000, "rows": 8, "batch_tokens": 16} | limits))
        scheduler = Scheduler(bounds, BlockPool(blocks, size), pool, frozenset([STOP]), lambda: now[0])
        events: list[Event] = []
        engine = Engine(scheduler, echo, events.extend, check=True)
        return Bench(echo, engine, scheduler, pool, now, loads, events)

    return build
