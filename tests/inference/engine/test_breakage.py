"""What breaks outside of the model ends the engine loudly: nobody waits for an answer that will never come."""

from collections.abc import Callable
from typing import Any

from inference.engine.blocks import BlockPool
from inference.errors import NonFinite


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
