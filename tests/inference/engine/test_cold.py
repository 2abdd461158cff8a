"""Whose adapter comes next when many wait for theirs."""

from collections.abc import Callable
from typing import Any


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
