"""Who runs ahead of its reader stops until the reader goes on; its row, slot and memory are others' meanwhile."""

import random
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.scheduler import UNREAD
from inference.errors import EngineBusy, NotRead

LONG: dict[str, Any] = {"tokens": 40, "window": 8}
ROOMY: dict[str, Any] = {"blocks": 300, "context": 512}


def test_a_sequence_whose_reader_stands_still_stops_a_window_ahead_of_it(bench: Callable[..., Any]) -> None:
    engine = bench()
    unread = engine.submit(digest="x", **LONG)
    unread.said = "what the sampler remembers"
    engine.steps(40)
    assert len(engine.tokens(unread)) == 8
    assert engine.scheduler.held.keys() == {unread}
    assert engine.scheduler.blocks.leased == 0
    assert unread.said is None
    assert not any(slot.pins for slot in engine.slots.slots)


def test_its_row_is_others_meanwhile(bench: Callable[..., Any]) -> None:
    engine = bench(rows=1)
    engine.submit(**LONG)
    other = engine.submit(tokens=4)
    engine.steps(40)
    assert engine.ended(other), "a reader that stands still keeps a row"


def test_it_goes_on_with_the_same_tokens_when_half_of_the_window_is_read(bench: Callable[..., Any]) -> None:
    engine = bench(size=16, **ROOMY)
    unread = engine.submit(prompt=40, **LONG)
    engine.steps(40)
    engine.engine.read(unread, 3)
    engine.steps(5)
    assert len(engine.tokens(unread)) == 8
    before = len(engine.echo.plans)
    engine.engine.read(unread, 1)
    engine.steps(20)
    assert len(engine.tokens(unread)) == 12
    assert engine.echo.plans[before].tokens <= 16, "what was known was computed again"
    engine.engine.read(unread, 100)
    engine.finish()
    assert engine.tokens(unread) == [unread.prompt[-1] + 1 + k for k in range(40)]


def test_who_reads_on_is_never_held(bench: Callable[..., Any]) -> None:
    engine = bench()
    asked = engine.submit(**LONG)
    while engine.scheduler.live or not engine.tokens(asked):
        engine.engine.read(asked, asked.ahead)
        engine.steps()
        assert not engine.scheduler.held
    assert len(engine.tokens(asked)) == 40


def test_a_held_request_that_is_left_holds_nothing_and_tells_what_it_made(bench: Callable[..., Any]) -> None:
    engine = bench()
    unread = engine.submit(digest="x", **LONG)
    engine.steps(20)
    made = engine.engine.ask(lambda: engine.scheduler.stop(unread))
    engine.steps()
    assert made.result() == len(engine.tokens(unread)) == 8
    assert not engine.scheduler.live
    engine.engine.read(unread, 8)
    engine.steps()
    assert not engine.scheduler.live, "who is gone came back"


def test_held_requests_count_among_those_of_their_share_that_wait(bench: Callable[..., Any]) -> None:
    engine = bench(waiting_per_share=3)
    held = [engine.submit(share="acme", **LONG) for _ in range(3)]
    engine.steps(20)
    assert engine.scheduler.held.keys() == set(held)
    more, stranger = engine.submit(share="acme", **LONG), engine.submit(share="globex")
    engine.steps(20)
    assert isinstance(engine.ended(more).error, EngineBusy)
    assert engine.ended(stranger).reason == "length"
    engine.engine.read(held[0], 40)
    engine.engine.cancel(held[1])
    again = engine.submit(share="acme")
    engine.steps(60)
    assert engine.ended(again).reason == engine.ended(held[0]).reason == "length"


def test_what_nobody_reads_for_ten_minutes_ends_with_what_it_had(bench: Callable[..., Any]) -> None:
    engine = bench()
    unread, slow = engine.submit(**LONG), engine.submit(**LONG)
    engine.steps(20)
    engine.now[0] = UNREAD - 1
    engine.engine.read(slow, 8)
    engine.steps(20)
    assert engine.scheduler.held.keys() == {unread, slow}
    engine.now[0] = UNREAD
    engine.steps()
    assert isinstance(engine.ended(unread).error, NotRead)
    assert len(engine.tokens(unread)) == unread.generated == 8
    assert engine.scheduler.held.keys() == {slow}, "who reads on, slowly, was ended"


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), blocks=st.integers(17, 60), rows=st.integers(1, 4))
def test_however_slowly_it_is_read_every_answer_is_what_it_would_be_alone(
    bench: Callable[..., Any], seed: int, blocks: int, rows: int
) -> None:
    draw = random.Random(seed)
    engine = bench(blocks=blocks, rows=rows)
    asked = []
    for _ in range(16):
        place = {"window": draw.randint(1, 12), "first": draw.randint(1, 200), "share": draw.choice("ab")}
        asked.append(
            engine.submit(draw.randint(1, 30), draw.choice(["", "p", "q"]), tokens=draw.randint(1, 30), **place)
        )
    for _ in range(4000):
        engine.now[0] += 0.1
        for sequence in asked:
            engine.engine.read(sequence, draw.randint(0, max(0, sequence.ahead)))
        if not engine.engine.step() and not engine.scheduler.live:
            break
    assert not engine.scheduler.live
    for sequence in asked:
        offset = 1000 if sequence.digest else 0
        assert engine.tokens(sequence) == [
            sequence.prompt[-1] + k + offset + 1 for k in range(sequence.sampling.max_tokens)
        ]
