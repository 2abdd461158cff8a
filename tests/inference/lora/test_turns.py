"""Loading threads work one at a time, in short turns and in order, and rest while the engine computes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference.lora import dora, turns
from inference.lora.turns import Turns
from inference.lora.weights import read
from inference.models.load import load


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept, in seconds, on a clock that only sleep moves."""
    slept: list[float] = []
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept), thread_time=time.thread_time)
    monkeypatch.setattr(turns, "time", clock)
    return slept


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_who_takes_one_turn_after_another_keeps_nobody_out() -> None:
    shared, order = Turns(), list[str]()

    def other() -> None:
        with shared.take():
            order.append("other")

    thread = threading.Thread(target=other)
    with shared.take():
        thread.start()
        while not shared._line:
            time.sleep(0.001)
    with shared.take():
        order.append("greedy")
    thread.join()
    assert order == ["other", "greedy"]


def test_nobody_works_beside_another(rests: list[float]) -> None:
    shared, inside, most = Turns(lambda: True), [0], [0]

    def some() -> None:
        for _ in range(200):
            with shared.take():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=some) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_while_steps_run_work_takes_its_share_of_the_time_in_small_slices(rests: list[float]) -> None:
    shared = Turns(lambda: True, share=0.2)
    for _ in range(5):
        with shared.take():
            work(0.004)
    assert len(rests) >= 5
    assert sum(rests) >= 4 * 0.02


@pytest.mark.parametrize("case", ["idle", "in a hurry"])
def test_nobody_rests_while_no_step_runs_or_time_runs_out(rests: list[float], case: str) -> None:
    shared = Turns(lambda: case != "idle")
    for _ in range(3):
        with shared.take(hurry=case == "in a hurry"):
            work(0.004)
    assert rests == []


def test_a_rest_ends_with_the_steps(rests: list[float]) -> None:
    shared = Turns(lambda: len(rests) < 2)
    with shared.take():
        work(0.05)
    assert len(rests) == 2


def test_who_fails_or_gives_up_in_its_turn_leaves_it_to_the_next() -> None:
    shared = Turns()
    with pytest.raises(ValueError, match="odd"), shared.take():
        raise ValueError("odd")
    with shared.take():
        pass


def test_norms_and_copies_are_made_in_short_turns(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dora, "BLOCK", 16)
    base = workshop.base("llama")
    model = load(str(base.folder), torch.device("cpu"), torch.float32, 1)
    config = {"r": 4, "target_modules": ["down_proj"], "use_dora": True, "modules_to_save": ["lm_head"]}
    adapter = workshop.adapter(base, "turns", **config)
    taken = [0, 0]  # turns, and how deep in one

    @contextmanager
    def turn() -> Iterator[None]:
        assert taken[1] == 0, "a turn within a turn waits for itself"
        taken[0] += 1
        taken[1] += 1
        yield
        taken[1] -= 1

    whole, in_turns = (read(adapter, model.spec, model.device, model.sites.frozen, turn=t) for t in (nullcontext, turn))
    assert whole.buffer is not None
    assert in_turns.buffer is not None
    assert torch.equal(in_turns.buffer, whole.buffer)
    layers, blocks = 3, 64 // 16
    assert taken[0] >= layers * blocks + len(whole.starts)
