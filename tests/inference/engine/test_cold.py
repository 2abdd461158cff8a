"""Whose adapter comes next when many wait for theirs."""

from collections.abc import Callable
from typing import Any

import pytest


def test_one_tenants_five_hundred_cold_adapters_delay_anothers_only_by_a_few(bench: Callable[..., Any]) -> None:
    engine = bench(slots=2, instant=False, patience=0.5)
    many = [engine.submit(digest=f"a{number}", share="acme") for number in range(500)]
    engine.steps(2)
    began = len(engine.loads)
    stranger = engine.submit(digest="g", share="globex")
    loaded = 0
    while not engine.ended(stranger):
        engine.now[0] += 0.1
        for digest in list(engine.loads)[:1]:
            engine.loaded(digest)
            loaded += 1
        engine.steps()
        assert loaded <= 2 * began, "it waits behind all that another tenant wants"
    assert began < 10
    for _ in range(20_000):
        engine.now[0] += 0.1
        for digest in list(engine.loads):
            engine.loaded(digest)
        if not engine.engine.step() and not engine.scheduler.live:
            break
    assert all(engine.ended(sequence).reason == "length" for sequence in many)


def test_in_a_step_a_share_asks_once_for_an_adapter_that_is_not_there(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench(rows=2, blocks=200, context=512, instant=False)
    running = [engine.submit(share="greedy", tokens=200) for _ in range(2)]
    engine.steps(10)
    asked: list[str] = []
    want = engine.slots.want

    def watched(digest: str, left: Any) -> None:
        asked.append(digest)
        want(digest, left)

    monkeypatch.setattr(engine.slots, "want", watched)
    many = [engine.submit(digest="x", share="acme", tokens=1) for _ in range(50)]
    stranger = engine.submit(digest="x", share="globex")
    engine.steps(3)  # they are behind by a quantum now, so that rows are theirs as soon as their adapter comes
    asked.clear()
    engine.steps()
    assert asked == ["x", "x"], "each of those that wait is looked at"
    assert all(sequence.cold for sequence in (*many, stranger))
    engine.loaded("x")
    engine.finish()
    assert all(engine.ended(sequence).reason == "length" for sequence in (*running, *many, stranger))
