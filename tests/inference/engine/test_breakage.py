"""What breaks outside of the model ends the engine loudly: nobody waits for an answer that will never come."""

from collections.abc import Callable
from typing import Any

import pytest

from inference.engine.blocks import BlockPool
from inference.engine.engine import Note
from inference.errors import EngineDown, Internal, NonFinite

SOON = 30  # seconds


def breaking(*_: object) -> Any:
    raise ZeroDivisionError("a bug")


def break_plan(engine: Any) -> None:
    engine.scheduler.plan = breaking


def break_commit(engine: Any) -> None:
    engine.scheduler.commit = breaking


def break_check(engine: Any) -> None:
    engine.scheduler.check = breaking


def break_note(engine: Any) -> None:
    engine.engine._leave(Note(breaking))


def break_delivery_once(engine: Any) -> None:
    deliver = engine.engine._deliver

    def breaks(events: Any) -> None:
        engine.engine._deliver = deliver
        breaking()

    engine.engine._deliver = breaks


@pytest.mark.parametrize("fault", [break_plan, break_commit, break_check, break_note, break_delivery_once])
def test_every_request_and_question_fails_when_the_engine_breaks(
    bench: Callable[..., Any], fault: Callable[[Any], None]
) -> None:
    engine = bench(rows=1)
    running, waiting, cold = engine.submit(tokens=40), engine.submit(), engine.submit(digest="x", share="globex")
    engine.steps(2)
    fault(engine)
    asked = engine.engine.ask(lambda: 1)
    engine.engine.start()
    with pytest.raises(ZeroDivisionError):
        engine.engine.ended.result(SOON)
    late, too_late = engine.submit(), engine.engine.ask(lambda: 2)
    engine.engine.cancel(late)
    for sequence in (running, waiting, cold, late):
        assert isinstance(engine.ended(sequence).error, Internal)
    assert sum(event.sequence is running and hasattr(event, "reason") for event in engine.events) == 1
    assert asked.exception(SOON) is None or isinstance(asked.exception(SOON), Internal)
    with pytest.raises(Internal):
        too_late.result(SOON)
    engine.engine.stop()


def test_who_comes_after_the_end_is_told_so(bench: Callable[..., Any]) -> None:
    engine = bench()
    engine.engine.start()
    engine.engine.stop()
    assert engine.engine.ended.result(SOON) is None
    late = engine.submit()
    assert isinstance(engine.ended(late).error, EngineDown)
    with pytest.raises(EngineDown):
        engine.engine.ask(lambda: 1).result(SOON)


def test_an_engine_that_is_stopped_just_when_it_goes_to_sleep_ends(bench: Callable[..., Any]) -> None:
    engine = bench()
    wake = engine.engine._wake
    clear = wake.clear

    def stop_and_clear() -> None:
        engine.engine._stopping = True
        wake.set()
        clear()

    wake.clear = stop_and_clear
    engine.engine.wake()
    engine.engine.start()
    assert engine.engine.ended.result(SOON) is None


def test_who_no_longer_waits_for_an_answer_breaks_nothing(bench: Callable[..., Any]) -> None:
    """A call that its client cancelled leaves a cancelled future behind."""
    engine = bench()
    run = []
    gone, other = engine.engine.ask(lambda: run.append(1)), engine.engine.ask(lambda: 2)
    gone.cancel()
    engine.steps()
    assert (run, other.result(SOON)) == ([], 2)


def test_nothing_of_a_request_whose_output_was_not_a_number_is_met_again(bench: Callable[..., Any]) -> None:
    """Its prompt takes two steps, and only the second one's output shows it."""
    engine = bench(batch_tokens=8)
    engine.echo.finite = False
    broken = engine.submit(prompt=14)
    engine.finish()
    assert isinstance(engine.ended(broken).error, NonFinite)
    engine.echo.finite = True
    again = engine.submit(prompt=14)
    engine.finish()
    known = engine.submit(prompt=14)
    engine.finish()
    assert engine.ended(again).reason == "length"
    assert (again.cached, known.cached) == (0, 12)


def test_forgetting_a_prefix_takes_it_from_nobody_who_reads_it() -> None:
    pool = BlockPool(4, 2)
    leased, known = pool.lease(2), [b"first", b"second"]
    assert leased is not None
    for block, digest in zip(leased, known, strict=True):
        pool.seal(block, digest)
    reader = pool.match(known)
    pool.forget(leased)
    pool.release(leased)
    pool.check()
    assert (pool.match(known), pool.leased, pool.cached) == ([], 2, 0)
    pool.release(reader)
    pool.check()
    assert pool.lease(4) is not None
