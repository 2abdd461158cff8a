"""What one step runs, who is next, and that nothing is lost whatever happens. Every step asserts the pools' laws."""

import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.client import Sampling
from inference.errors import AdapterUnavailable, EngineBusy, Internal, InvalidRequest, PromptTooLong


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


def test_the_batch_does_not_wait_for_a_load(bench: Callable[..., Any]) -> None:
    engine = bench(instant=False)
    cold, warm = engine.submit(digest="x"), engine.submit()
    engine.steps(5)
    assert engine.ended(warm)
    assert not engine.tokens(cold)
    engine.loaded("x")
    engine.finish()
    assert len(engine.tokens(cold)) == 4


def test_a_failed_load_fails_the_requests_that_wait_for_it_and_no_other(bench: Callable[..., Any]) -> None:
    engine = bench(instant=False)
    broken, waiting, fine = engine.submit(digest="x"), engine.submit(digest="x", share="b"), engine.submit(digest="y")
    engine.steps()
    engine.loads.pop("x").set_exception(OSError("disk"))
    engine.loaded("y")
    engine.finish()
    assert isinstance(engine.ended(broken).error, AdapterUnavailable)
    assert isinstance(engine.ended(waiting).error, AdapterUnavailable)
    assert engine.ended(fine).reason == "length"
    again = engine.submit(digest="x")
    engine.steps()
    engine.loaded("x")
    engine.finish()
    assert engine.ended(again).reason == "length"


def test_a_thousand_requests_of_one_tenant_delay_another_only_by_a_few_steps(bench: Callable[..., Any]) -> None:
    engine = bench(rows=4, blocks=256)
    for _ in range(1000):
        engine.submit(share="greedy", tokens=8)
    engine.steps(40)
    asked = engine.submit(share="modest", tokens=1)
    engine.steps(16)
    assert engine.ended(asked), "the modest tenant waited behind the greedy one"


def test_service_follows_the_weights(bench: Callable[..., Any]) -> None:
    engine = bench(rows=2)
    heavy = [engine.submit(share="heavy", weight=3.0) for _ in range(60)]
    light = [engine.submit(share="light") for _ in range(60)]
    while len(engine.begun()) < 60:
        engine.steps()
    started = engine.begun()
    assert sum(s in heavy for s in started) == pytest.approx(3 * sum(s in light for s in started), rel=0.15)


def test_an_idle_tenant_saves_up_no_service(bench: Callable[..., Any]) -> None:
    engine = bench(rows=2)
    early = engine.submit(share="idle", tokens=1)
    busy = [engine.submit(share="busy") for _ in range(80)]
    engine.steps(100)
    back = [engine.submit(share="idle") for _ in range(40)]
    before = len(engine.begun())
    engine.steps(40)
    since = engine.begun()[before:]
    assert engine.ended(early)
    assert abs(sum(s in back for s in since) - sum(s in busy for s in since)) <= 2


def test_preempted_requests_finish_with_the_same_tokens(bench: Callable[..., Any]) -> None:
    engine = bench(blocks=10, rows=4)
    asked = [engine.submit(prompt=4, tokens=16, first=10 * n) for n in range(1, 5)]
    engine.finish()
    assert engine.scheduler.preemptions > 0
    for n, sequence in enumerate(asked, 1):
        assert engine.tokens(sequence) == [10 * n + 4 + k for k in range(16)]


def test_a_known_prefix_is_not_computed_again(bench: Callable[..., Any]) -> None:
    engine = bench()
    first = engine.submit(prompt=10)
    engine.finish()
    second = engine.submit(prompt=10)
    engine.finish()
    assert (first.cached, second.cached) == (0, 8)
    assert engine.tokens(first) == engine.tokens(second)


@pytest.mark.parametrize("other", [{"salt": "globex"}, {"digest": "x"}, {"digest": "y", "salt": "acme"}])
def test_a_prefix_is_never_shared_between_adapters_or_salts(bench: Callable[..., Any], other: dict[str, str]) -> None:
    engine = bench()
    engine.submit(prompt=10, **({"salt": "acme"} if "salt" in other else {}))
    engine.finish()
    stranger = engine.submit(prompt=10, **other)
    engine.finish()
    assert stranger.cached == 0


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


def test_a_full_queue_answers_busy_at_once(bench: Callable[..., Any]) -> None:
    engine = bench(waiting_per_share=3, waiting=5, rows=1)
    asked = [engine.submit() for _ in range(5)]
    stranger = engine.submit(share="globex")
    engine.steps()
    busy = [s for s in asked if engine.ended(s) and isinstance(engine.ended(s).error, EngineBusy)]
    assert busy == asked[3:]
    assert engine.ended(stranger) is None, "one tenant's full queue refuses another"
    engine.finish()
    assert engine.ended(stranger).reason == "length"


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


def test_one_more_adapter_than_slots_is_served_in_turn(bench: Callable[..., Any]) -> None:
    engine = bench(slots=2)
    asked = [engine.submit(digest=d, share=d) for _ in range(4) for d in "xyz"]
    engine.finish()
    assert all(engine.ended(sequence).reason == "length" for sequence in asked)


def test_a_waiting_adapter_does_not_starve_behind_resident_ones(bench: Callable[..., Any]) -> None:
    engine = bench(slots=1, rows=4, patience=1.0)
    for _ in range(200):
        engine.submit(digest="popular", tokens=4)
    engine.steps(2)
    cold = engine.submit(digest="cold", share="globex")
    for _ in range(40):
        engine.now[0] += 0.1
        engine.steps()
    assert engine.ended(cold), "the cold adapter starved"


def test_one_more_adapter_than_slots_costs_some_steps_and_not_seconds(bench: Callable[..., Any]) -> None:
    """Other engines: from 40 ms to the first token to 6 s."""

    def median_wait(adapters: int) -> float:
        engine = bench(slots=16, rows=32, batch_tokens=64, blocks=400)
        asked: dict[Any, int] = {}
        begun: dict[Any, int] = {}
        for step in range(500):
            if step % 2 == 0:
                asked[engine.submit(digest=f"x{step // 2 % adapters}", tokens=12)] = step
            engine.now[0] += 0.05
            engine.steps()
            begun |= {sequence: step for sequence in engine.begun() if sequence not in begun}
        return statistics.median(begun[sequence] - at for sequence, at in asked.items() if sequence in begun)

    assert median_wait(17) <= median_wait(16) + 1


def test_unloading_below_a_request_with_several_answers_waits_for_the_last_and_hangs_nobody(
    bench: Callable[..., Any],
) -> None:
    engine = bench()
    answers = [engine.submit(digest="x", tokens=8 + 4 * n) for n in range(4)]
    engine.steps(2)
    engine.engine.ask(lambda: engine.slots.evict("x"))
    late = engine.submit(digest="x")
    engine.finish()
    assert all(engine.ended(sequence).reason == "length" for sequence in [*answers, late])
    assert engine.begun().index(late) == len(answers)
    assert engine.slots.tally.misses == 2


def test_answers_that_are_left_one_by_one_below_an_unload_free_the_slot_with_the_last(
    bench: Callable[..., Any],
) -> None:
    engine = bench()
    answers = [engine.submit(digest="x", tokens=40) for _ in range(3)]
    engine.steps(2)
    engine.engine.ask(lambda: engine.slots.evict("x"))
    for sequence in answers:
        assert engine.slots.state("x") is not None
        engine.engine.cancel(sequence)
        engine.steps()
    assert engine.slots.state("x") is None
    after = engine.submit(digest="x")
    engine.finish()
    assert engine.ended(after).reason == "length"


def test_as_many_adapters_as_slots_and_the_base_share_a_step_while_another_waits(bench: Callable[..., Any]) -> None:
    """Other engines: N adapters and the base at once crash the scheduler."""
    engine = bench(slots=3)
    asked = [engine.submit(digest=digest, share=digest, tokens=12) for digest in ("x", "", "y", "z", "w")]
    engine.finish()
    assert all(engine.ended(sequence).reason == "length" for sequence in asked)
    together = [{row.sequence.digest for row in plan.rows} for plan in engine.echo.plans]
    assert {"x", "", "y", "z"} in together
    assert all(len(digests - {""}) <= 3 for digests in together)


@pytest.mark.parametrize("share", ["acme", "globex"], ids=["of the same tenant", "of another tenant"])
def test_adapters_do_not_starve_behind_resident_ones_that_are_asked_for_without_end(
    bench: Callable[..., Any], share: str
) -> None:
    engine = bench(slots=2, rows=4, patience=1.0, blocks=200)
    cold = []
    for step in range(200):
        engine.submit(digest="pq"[step % 2], share="acme", tokens=6)
        if step == 20:
            cold = [engine.submit(digest=digest, share=share) for digest in ("rare", "rarer")]
        engine.now[0] += 0.1
        engine.steps()
    assert all(engine.ended(sequence) for sequence in cold), "a cold adapter starved"


def test_a_request_under_way_keeps_its_adapter_whatever_is_loaded_meanwhile(bench: Callable[..., Any]) -> None:
    """Other engines: a hot load into its slot answers it with another tenant's adapter. The echo asserts the slot."""
    engine = bench(slots=1, patience=0.1)
    asked = engine.submit(digest="x", tokens=30)
    engine.steps(2)
    for digest in ("y", "z"):
        engine.submit(digest=digest, share=digest)
        engine.engine.ask(lambda: engine.slots.evict("x"))
    for _ in range(20):
        engine.now[0] += 0.1
        engine.steps()
        assert engine.echo.installed == {0: "x"}
    engine.finish()
    assert len(engine.tokens(asked)) == 30


def test_a_known_prefix_of_an_adapter_is_met_again_even_after_its_reload(bench: Callable[..., Any]) -> None:
    """Other engines switch prefix caching off as soon as adapters are on."""
    engine = bench()
    asked = []
    for _ in range(3):
        asked.append(engine.submit(prompt=10, digest="x"))
        engine.finish()
        engine.engine.ask(lambda: engine.slots.evict("x"))
        engine.steps()
    assert [sequence.cached for sequence in asked] == [0, 8, 8]
    assert engine.slots.tally.misses == 3
    assert engine.tokens(asked[0]) == engine.tokens(asked[2])


@pytest.mark.parametrize("salt", ["", "acme", ":acme", "1:x:acme", "x" * 100_000, "\x00\n\u202eé", "acme\x00"])
def test_a_salt_that_somebody_chose_crashes_nothing_and_meets_only_itself(bench: Callable[..., Any], salt: str) -> None:
    engine = bench()
    for digest, mine in (("x", "tenant-a"), ("x:1", "acme"), ("", "x:acme")):
        engine.submit(prompt=10, digest=digest, salt=mine)
    engine.finish()
    first = engine.submit(prompt=10, digest="x", salt=salt)
    engine.finish()
    again = engine.submit(prompt=10, digest="x", salt=salt)
    engine.finish()
    assert (first.cached, again.cached) == (0, 8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        if end is not None and end.error is None:
            first = sequence.prompt[-1] + 1
            offset = 1000 if sequence.digest else 0
            assert engine.tokens(sequence)[0] == first + offset
            assert len(engine.tokens(sequence)) == sequence.sampling.max_tokens
    assert engine.scheduler.blocks.leased == 0


def test_an_urgent_request_overtakes_its_own_tenants_and_nobody_elses(bench: Callable[..., Any]) -> None:
    engine = bench(rows=1)
    engine.submit(share="acme")
    engine.steps()
    patient = [engine.submit(share="acme", tokens=1) for _ in range(3)]
    stranger = engine.submit(share="globex", tokens=1)
    urgent = engine.submit(share="acme", tokens=1, priority=-5)
    engine.finish()
    assert engine.begun()[1:] == [stranger, urgent, *patient]


def test_a_request_that_may_not_wait_longer_is_told_so(bench: Callable[..., Any]) -> None:
    engine = bench(rows=1)
    running = engine.submit(tokens=30)
    hurried, patient = engine.submit(start_by=1.0), engine.submit()
    engine.steps(2)
    assert engine.ended(hurried) is None
    engine.now[0] = 1.5
    engine.steps()
    assert isinstance(engine.ended(hurried).error, EngineBusy)
    engine.finish()
    assert engine.ended(running).reason == engine.ended(patient).reason == "length"
