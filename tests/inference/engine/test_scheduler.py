"""What one step runs, and that nothing is lost whatever happens. Every step asserts the pools' laws."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.client import Sampling
from inference.errors import Internal, InvalidRequest, PromptTooLong


def test_a_request_gets_its_tokens_and_one_end(bench: Callable[..., Any]) -> None:
    engine = bench()
    asked = engine.submit(prompt=3, tokens=4)
    engine.finish()
    assert engine.tokens(asked) == [13, 14, 15, 16]
    assert engine.ended(asked).reason == "length"


def test_the_stop_token_ends_an_answer_unless_it_is_to_be_ignored(bench: Callable[..., Any]) -> None:
    engine = bench()
    stopping = engine.submit(prompt=1, first=996, tokens=9)
    ignoring = engine.submit(prompt=1, first=996, tokens=9, ignore_eos=True)
    engine.finish()
    assert engine.tokens(stopping) == [997, 998, 999]
    assert engine.ended(stopping).reason == "stop"
    assert len(engine.tokens(ignoring)) == 9


def test_a_request_s_own_stop_tokens_end_its_answer_whatever_it_ignores(bench: Callable[..., Any]) -> None:
    engine = bench()
    asked = engine.submit(prompt=1, first=10, tokens=9, stop_token_ids=(12,), ignore_eos=True)
    stranger = engine.submit(prompt=1, first=10, tokens=4, share="b")
    early = engine.submit(prompt=1, first=10, tokens=9, stop_token_ids=(11, 14), min_tokens=2)
    engine.finish()
    assert (engine.tokens(asked), engine.ended(asked).reason) == ([11, 12], "stop")
    assert engine.tokens(stranger) == [11, 12, 13, 14]
    assert engine.tokens(early) == [11, 12, 13, 14]
    with pytest.raises(InvalidRequest) as refused:
        engine.submit(stop_token_ids=(3000,))
    assert refused.value.param == "stop_token_ids"


def test_two_tenants_adapters_and_the_base_share_a_step(bench: Callable[..., Any]) -> None:
    engine = bench()
    asked = [engine.submit(digest=d, share=s) for d, s in (("x", "acme"), ("y", "globex"), ("", "acme"))]
    engine.finish()
    assert engine.engine.steps_by_adapters[2] > 0
    assert [engine.tokens(a)[0] for a in asked] == [1014, 1014, 14]


def test_a_long_prompt_is_computed_in_chunks_while_others_decode(bench: Callable[..., Any]) -> None:
    engine = bench(batch_tokens=8)
    short = engine.submit(prompt=2, tokens=12)
    engine.steps()
    long = engine.submit(prompt=30, tokens=2)
    engine.finish()
    assert all(plan.tokens <= 8 for plan in engine.echo.plans)
    assert sum(len(plan.rows) == 2 for plan in engine.echo.plans) >= 4
    assert engine.tokens(long) == [40, 41]
    assert len(engine.tokens(short)) == 12


def test_preempted_requests_finish_with_the_same_tokens(bench: Callable[..., Any]) -> None:
    engine = bench(blocks=10, rows=4)
    asked = [engine.submit(prompt=4, tokens=16, first=10 * n) for n in range(1, 5)]
    engine.finish()
    assert engine.scheduler.preemptions > 0
    for n, sequence in enumerate(asked, 1):
        assert engine.tokens(sequence) == [10 * n + 4 + k for k in range(16)]


def test_where_memory_is_short_newcomers_drive_nobody_out(bench: Callable[..., Any]) -> None:
    """Whose blocks a newcomer takes is computed again, and takes them back: that must stay a small part of the work."""
    engine = bench(blocks=60, rows=16, batch_tokens=64)
    asked = [engine.submit(prompt=20, tokens=40, first=20 * n, share=f"tenant {n % 4}") for n in range(40)]
    engine.finish()
    assert engine.scheduler.preemptions > 0
    needed = sum(len(sequence.tokens) - 1 for sequence in asked)
    assert sum(plan.tokens for plan in engine.echo.plans) < 1.5 * needed


def test_a_cancelled_request_gives_back_what_it_held_within_a_step(bench: Callable[..., Any]) -> None:
    engine = bench()
    running, waiting = engine.submit(digest="x", tokens=40), engine.submit(digest="z", tokens=40)
    engine.steps(3)
    for sequence in (running, waiting):
        engine.engine.cancel(sequence)
    engine.steps()
    assert not engine.scheduler.live
    assert engine.scheduler.blocks.leased == 0
    assert not any(slot.pins for slot in engine.slots.slots)
    assert not engine.ended(running)


def test_cancelling_after_the_end_does_nothing(bench: Callable[..., Any]) -> None:
    engine = bench(waiting=1, rows=1)
    asked = [engine.submit() for _ in range(3)]
    for sequence in asked:
        engine.engine.cancel(sequence)
    engine.finish()
    assert not engine.scheduler.live


def test_a_broken_step_fails_its_own_requests_and_the_engine_goes_on(bench: Callable[..., Any]) -> None:
    engine = bench()
    asked = engine.submit()
    engine.echo.fails = True
    engine.steps()
    assert isinstance(engine.ended(asked).error, Internal)
    engine.echo.fails = False
    after = engine.submit()
    engine.finish()
    assert engine.ended(after).reason == "length"


@pytest.mark.parametrize(
    ("prompt", "tokens", "error", "param"),
    [
        ([], 1, InvalidRequest, "prompt"),
        ([3000], 1, InvalidRequest, "prompt"),
        ([1], 0, InvalidRequest, "max_tokens"),
        ([1] * 60, 5, PromptTooLong, "prompt"),
    ],
)
def test_impossible_requests_are_refused_by_name(
    bench: Callable[..., Any], prompt: list[int], tokens: int, error: type[InvalidRequest], param: str
) -> None:
    with pytest.raises(error) as caught:
        bench().scheduler.admissible(prompt, Sampling(max_tokens=tokens))
    assert caught.value.param == param


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), blocks=st.integers(17, 40), slots=st.integers(1, 3))
def test_random_schedules_keep_the_laws_and_end_every_request(
    bench: Callable[..., Any], seed: int, blocks: int, slots: int
) -> None:
    draw = random.Random(seed)
    engine = bench(blocks=blocks, slots=slots, instant=False, patience=0.3)
    asked, gone = [], set()
    for _ in range(120):
        engine.now[0] += 0.1
        match draw.randrange(6):
            case 0 | 1 | 2:
                digest, share = draw.choice(["", "p", "q", "r", "s"]), draw.choice(["acme", "globex"])
                asked.append(engine.submit(draw.randint(1, 30), digest, share, draw.randint(1, 30)))
            case 3 if asked:
                gone.add(victim := draw.choice(asked))
                engine.engine.cancel(victim)
            case 4 if engine.loads:
                engine.loaded(draw.choice(sorted(engine.loads)))
            case 5:
                engine.engine.ask(lambda: engine.slots.evict(draw.choice("pqrs")))
        engine.steps()
    for _ in range(5000):
        engine.now[0] += 0.1
        for digest in list(engine.loads):
            engine.loaded(digest)
        if not engine.engine.step() and not engine.scheduler.live:
            break
    assert not engine.scheduler.live
    for sequence in asked:
        end = engine.ended(sequence)
        assert sequence in gone or end is not None
        assert end is None or not isinstance(end.error, Internal), "a step broke"
        if end is not None and end.error is None:
            first = sequence.prompt[-1] + 1
            offset = 1000 if sequence.digest else 0
            assert engine.tokens(sequence)[0] == first + offset
            assert len(engine.tokens(sequence)) == sequence.sampling.max_tokens
    assert all(len({row.sequence.digest for row in plan.rows} - {""}) <= slots for plan in engine.echo.plans)
    assert engine.scheduler.blocks.leased == 0
