"""Whatever else arrives, leaves, loads or is evicted around it: a request's greedy tokens are those it gets alone."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.sequence import Sequence
from inference.errors import AdapterUnavailable
from inference.lora.arena import PAGE, Arena
from inference.lora.weights import AdapterWeights, read

TOKENS = 9
PROMPTS = ((3, 0), (3, 1), (18, 0), (34, 0), (34, 1), (50, 0))  # length and seed; those of one length share nothing
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "target_modules": "all-linear"},
    "narrow": {"r": 1, "target_modules": ["q_proj"]},
    "wide": {"r": 64, "target_modules": ["down_proj"], "use_rslora": True},
    "dora": {"r": 4, "target_modules": ["v_proj", "up_proj", "embed_tokens"], "use_dora": True},
    "biased": {"r": 4, "target_modules": ["q_proj", "k_proj"], "bias": "all"},
    "saved": {"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens", "lm_head", "model.norm"]},
}


@dataclass
class Alone:
    """What Transformers and PEFT answer, by adapter and prompt; "" is the base."""

    base: Any
    adapters: dict[str, Path]
    prompts: list[list[int]]
    largest: int  # bytes of an adapter on the device
    answers: dict[str, list[list[int]]] = field(default_factory=dict)


@pytest.fixture(scope="session")
def alone(workshop: Any) -> Alone:
    base = workshop.base("qwen2")
    adapters = {name: workshop.adapter(base, f"s-{name}", lora_alpha=8, **config) for name, config in CONFIGS.items()}
    prompts = [workshop.prompt(length, seed) for length, seed in PROMPTS]
    answers = {name: base.answers(adapters.get(name), prompts, TOKENS) for name in ("", *adapters)}
    model = workshop.engine(base, adapters).model
    sizes = [read(folder, model.spec, model.device, model.sites.frozen).nbytes for folder in adapters.values()]
    return Alone(base, adapters, prompts, max(sizes), answers)


@dataclass(frozen=True)
class Act:
    """One line of a schedule: wait some steps, then ask, cancel or evict. `fails`: the adapter's next load breaks."""

    wait: int
    adapter: str
    prompt: int
    tokens: int
    cancel_after: int | None
    evict: bool
    fails: bool


ACTS = st.builds(
    Act,
    wait=st.integers(0, 3),
    adapter=st.sampled_from(["", *CONFIGS]),
    prompt=st.integers(0, len(PROMPTS) - 1),
    tokens=st.integers(1, TOKENS),
    cancel_after=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 8)),
    evict=st.sampled_from([False, False, False, True]),
    fails=st.sampled_from([False] * 9 + [True]),
)


class SlowStore:
    """Loads that end some steps after they began, or break."""

    def __init__(self, adapters: dict[str, Path], delays: Iterator[int]) -> None:
        self.breaking: set[str] = set()
        self.broke: set[str] = set()
        self.model: Any = None
        self._adapters = adapters
        self._delays = delays
        self._pending: list[tuple[int, str, Future[AdapterWeights]]] = []

    def load(self, digest: str) -> Future[AdapterWeights]:
        future: Future[AdapterWeights] = Future()
        future.set_running_or_notify_cancel()
        self._pending.append((next(self._delays), digest, future))
        return future

    def tick(self) -> None:
        for left, digest, future in self._pending:
            if left == 0 and digest in self.breaking:
                self.breaking.discard(digest)
                self.broke.add(digest)
                future.set_exception(AdapterUnavailable("The store is gone."))
            elif left == 0:
                model = self.model
                future.set_result(read(self._adapters[digest], model.spec, model.device, model.sites.frozen))
        self._pending = [(left - 1, digest, future) for left, digest, future in self._pending if left]


@settings(max_examples=30)
@given(
    acts=st.lists(ACTS, min_size=4, max_size=24),
    slots=st.integers(1, 4),
    blocks=st.sampled_from([7, 12, 60]),
    batch_tokens=st.sampled_from([16, 48, 300]),
    delays=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    memory=st.sampled_from([1.0, 1.4, 3.0, 20.0]),
)
def test_any_schedule_gives_every_request_the_tokens_it_gets_alone(
    workshop: Any,
    alone: Alone,
    acts: list[Act],
    slots: int,
    blocks: int,
    batch_tokens: int,
    delays: list[int],
    memory: float,
) -> None:
    """`memory`: for how many of the largest adapter there is room on the device."""
    store = SlowStore(alone.adapters, itertools.cycle(delays))
    steps = 0
    driver = workshop.engine(
        alone.base,
        load_with=store.load,
        slots=slots,
        blocks=blocks,
        batch_tokens=batch_tokens,
        room=Arena(int(alone.largest * memory) + PAGE, torch.device("cpu")),
        clock=lambda: float(steps),  # a step takes a second
    )
    store.model = driver.model
    asked: list[tuple[Act, Sequence]] = []
    cancels: list[tuple[int, Sequence]] = []

    def step() -> None:
        nonlocal steps
        for due, sequence in cancels:
            if due == steps:
                driver.engine.cancel(sequence)
        store.tick()
        driver.engine.step()
        steps += 1

    for act in acts:
        for _ in range(act.wait):
            step()
        if act.fails:
            store.breaking.add(act.adapter)
        if act.evict:
            driver.engine.ask(evicting(driver, act.adapter))
        sequence = driver.submit(alone.prompts[act.prompt], act.adapter, share=act.adapter, max_tokens=act.tokens)
        asked.append((act, sequence))
        if act.cancel_after is not None:
            cancels.append((steps + act.cancel_after, sequence))
    step()
    while driver.scheduler.live:
        step()
        assert steps < 3000, "the schedule doesn't end"

    cancelled = {id(sequence) for _, sequence in cancels}
    for act, sequence in asked:
        expected, tokens = alone.answers[act.adapter][act.prompt], driver.tokens(sequence)
        ended = driver.ended(sequence)
        if ended is None or ended.error is not None:
            assert id(sequence) in cancelled or act.adapter in store.broke
            assert tokens == expected[: len(tokens)]
        else:
            assert tokens == expected[: act.tokens], act


def evicting(driver: Any, digest: str) -> Callable[[], None]:
    return lambda: driver.slots.evict(digest)


@pytest.mark.parametrize("name", ["", *CONFIGS])
def test_tokens_do_not_depend_on_the_company(workshop: Any, alone: Alone, name: str) -> None:
    """The same request, with company of every size and kind that changes from step to step, sampled and greedy."""
    driver = workshop.engine(alone.base, alone.adapters, blocks=400, rows=64, batch_tokens=300)
    companies = [[], [name], ["", *CONFIGS], [*CONFIGS] * 4, [other for other in ("", *CONFIGS) if other != name] * 2]
    for company in companies:
        sequence = driver.submit(alone.prompts[2], name, max_tokens=TOKENS)
        for number, other in enumerate(company):
            driver.submit(
                workshop.prompt(5 + 7 * (number % 5), seed=number),
                other,
                max_tokens=1 + number % 8,
                temperature=float(number % 2),
                seed=number,
            )
        driver.run()
        assert driver.tokens(sequence) == alone.answers[name][2], company
