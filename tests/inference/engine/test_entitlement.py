"""Whose turn it is, who gives way when memory is short, and who has waited too long."""

from collections.abc import Callable
from typing import Any

from inference.errors import EngineBusy


def test_who_may_not_wait_longer_is_told_so_wherever_it_stands_in_a_line_that_does_not_move(
    bench: Callable[..., Any],
) -> None:
    engine = bench(rows=1)
    running, patient = engine.submit(tokens=30), engine.submit()
    hurried = engine.submit(start_by=1.0)
    stranger = engine.submit(share="globex", start_by=1.2)
    gone = engine.submit(share="globex", start_by=1.1)
    engine.steps(2)
    engine.engine.cancel(gone)
    engine.now[0] = 1.5
    engine.steps()
    assert isinstance(engine.ended(hurried).error, EngineBusy)
    assert isinstance(engine.ended(stranger).error, EngineBusy)
    assert engine.ended(gone) is engine.ended(patient) is None
    engine.finish()
    assert engine.ended(running).reason == engine.ended(patient).reason == "length"


def test_who_began_in_time_may_take_as_long_as_it_needs(bench: Callable[..., Any]) -> None:
    engine = bench(blocks=8, rows=2)
    asked = [engine.submit(tokens=16, start_by=1.0) for _ in range(2)]
    engine.steps(2)
    engine.now[0] = 1.5
    engine.finish()
    assert engine.scheduler.preemptions > 0, "none had to wait again"
    assert [engine.ended(sequence).reason for sequence in asked] == ["length", "length"]
