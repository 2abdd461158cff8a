import random
from typing import Any

import pytest

from evaluations.intervals import mean, proportion
from rollouts.verdicts import (
    Assurance,
    Direction,
    Guardrail,
    Kind,
    Metric,
    Mode,
    Outcome,
    Sample,
    Score,
    Standing,
    Verdict,
    Window,
    decide,
    tripped,
)

ERRORS = Guardrail.of(Metric.ERRORS)
FIRST_TOKEN = Guardrail.of(Metric.FIRST_TOKEN)
SCORE = Guardrail.of(Metric.EVALUATION)


def arm(
    count: int, seed: int, *, errors: float = 0.01, slow: float = 1.0, units: int = 10**9, **answers: Any
) -> Window:
    """Errors are spread evenly, so that tests do not depend on luck."""
    draw = random.Random(seed)
    return Window.of(
        Sample(
            f"{seed}-{draw.randrange(units)}",
            error=int(number * errors) < int((number + 1) * errors),
            first_token=slow * draw.lognormvariate(-1, 0.5),
            tokens=round(draw.lognormvariate(4, 0.7)) + 1,
            **answers,
        )
        for number in range(count)
    )


STABLE = arm(4000, 1)


def judged(canary: Window, *guardrails: Guardrail, stable: Window = STABLE, look: int = 0, **options: Any) -> Verdict:
    return decide(guardrails or (ERRORS, FIRST_TOKEN), stable, canary, look=look, steps=4, samples=400, **options)


def test_a_canary_like_stable_succeeds() -> None:
    verdict = judged(arm(500, 2))
    assert verdict.kind is Kind.SUCCESS
    assert [found.standing for found in verdict.findings] == [Standing.FINE, Standing.FINE]


def test_a_canary_with_more_errors_fails_and_says_why() -> None:
    verdict = judged(arm(500, 2, errors=0.08))
    assert verdict.kind is Kind.FAILURE
    assert verdict.reasons[0].startswith("error rate: 0.08 of the canary, 0.01 of stable, p = ")


def test_a_canary_with_a_slower_first_token_fails() -> None:
    assert judged(arm(800, 2, slow=1.8)).kind is Kind.FAILURE
    assert judged(arm(800, 2, slow=0.5)).kind is Kind.SUCCESS


def timed(*seconds: float, times: int = 200) -> Window:
    """Each request of a unit of its own, with these times in turn."""
    return Window.of(Sample(f"{seconds[0]}-{n}", first_token=seconds[n % len(seconds)]) for n in range(times))


SPREAD = tuple(0.1 * (1 + 0.002 * n) for n in range(-10, 10))
OUTLIER = (*[3.0] * 99, 100.0)  # one in a hundred


@pytest.mark.parametrize("canary", [timed(3.0), timed(*OUTLIER), timed(*(30 * value for value in SPREAD))])
@pytest.mark.parametrize("stable", [timed(0.1), timed(*SPREAD), timed(0.1, times=2000), timed(*[0.1] * 99, 100.0)])
def test_a_slow_canary_fails_however_little_the_times_of_either_arm_vary(canary: Window, stable: Window) -> None:
    assert judged(canary, FIRST_TOKEN, stable=stable).kind is Kind.FAILURE


@pytest.mark.parametrize(
    ("stable", "canary"), [((0.1,), (0.3,)), (SPREAD, (0.3,)), ((0.1,), tuple(3 * v for v in SPREAD))]
)
def test_twenty_times_more_of_stable_hide_nothing(stable: tuple[float, ...], canary: tuple[float, ...]) -> None:
    verdict = judged(timed(*canary, times=100), FIRST_TOKEN, stable=timed(*stable, times=2000))
    assert verdict.kind is Kind.FAILURE


@pytest.mark.parametrize("stable", [1e-9, 0.05, 0.1, 0.1001, 0.104, 0.7, 3.0, 1e9])
@pytest.mark.parametrize("factor", [0.03, 0.97, 1.0, 1.05, 1.0999])
@pytest.mark.parametrize("sizes", [(200, 200), (4000, 200), (200, 4000)])
def test_constant_times_within_the_margin_are_no_harm(stable: float, factor: float, sizes: tuple[int, int]) -> None:
    low, high = (timed(value, times=size) for value, size in zip((stable, factor * stable), sizes, strict=True))
    assert decide((FIRST_TOKEN,), low, high, look=0, steps=1, samples=200).kind is Kind.SUCCESS
    (found,) = judged(high, Guardrail.of(Metric.FIRST_TOKEN, margin=0.1), stable=low).findings
    assert found.p == 1


@pytest.mark.parametrize(("margin", "ruled_out"), [(0.1, True), (0.0, False)])
def test_equal_constants_rule_harm_out_where_there_is_a_margin(margin: float, ruled_out: bool) -> None:
    rail = Guardrail.of(Metric.FIRST_TOKEN, margin=margin, assurance=Assurance.RULED_OUT)
    (found,) = judged(timed(0.1, times=1000), rail, stable=timed(0.1, times=1000)).findings
    assert found.p == 1
    assert (found.standing is Standing.FINE) == ruled_out


@pytest.mark.parametrize(("stable", "canary"), [((2000, 1), (100, 40)), ((100, 1), (2000, 40)), ((200, 40), (200, 1))])
def test_answers_of_one_length_may_not_become_those_of_another(
    stable: tuple[int, int], canary: tuple[int, int]
) -> None:
    low, high = (Window.of(Sample(f"{size}-{n}", tokens=size) for n in range(of)) for of, size in (stable, canary))
    rail = Guardrail.of(Metric.LENGTH)
    assert decide((rail,), low, high, look=0, steps=1, samples=100).kind is Kind.FAILURE
    assert decide((rail,), low, low, look=0, steps=1, samples=100).kind is Kind.SUCCESS


def test_within_the_margin_nothing_fails() -> None:
    assert judged(arm(2000, 2, errors=0.05), Guardrail.of(Metric.ERRORS, margin=0.05)).kind is Kind.SUCCESS
    assert judged(arm(2000, 2, slow=1.5), Guardrail.of(Metric.FIRST_TOKEN, margin=0.6)).kind is Kind.SUCCESS


@pytest.mark.parametrize(("canary", "stable"), [(0, 0), (0, 4000), (19, 4000), (19, 19), (4000, 0), (4000, 19)])
def test_low_or_no_traffic_is_inconclusive_even_if_all_of_it_fails(canary: int, stable: int) -> None:
    assert judged(arm(canary, 2, errors=1), stable=arm(stable, 3)).kind is Kind.INCONCLUSIVE


def test_fewer_samples_than_the_step_asks_for_are_inconclusive() -> None:
    verdict = judged(arm(399, 2))
    assert verdict.kind is Kind.INCONCLUSIVE
    assert verdict.reasons == ("399 of 400 requests that the step asks for",)


def test_suspected_harm_waits_for_more_samples() -> None:
    verdict = judged(arm(400, 2, errors=0.035))
    assert verdict.kind is Kind.INCONCLUSIVE
    assert verdict.findings[0].standing is Standing.DOUBT


def test_failure_is_declared_once_a_look() -> None:
    canary = arm(500, 2, errors=0.08)
    verdict = judged(canary)
    assert judged(canary, look=verdict.look).kind is Kind.INCONCLUSIVE
    assert judged(canary, look=verdict.look - 1).kind is Kind.FAILURE
    assert judged(arm(10, 2), look=7).look == 7, "a look that was made is not forgotten"


def test_a_guardrail_that_only_observes_decides_nothing() -> None:
    observed = Guardrail.of(Metric.ERRORS, mode=Mode.OBSERVE)
    verdict = judged(arm(500, 2, errors=0.5), observed, FIRST_TOKEN)
    assert verdict.kind is Kind.SUCCESS
    assert verdict.findings[0].standing is Standing.HARM
    assert verdict.as_json()["findings"][0]["mode"] == "observe"


def test_harm_that_must_be_ruled_out_takes_more_samples() -> None:
    careful = Guardrail.of(Metric.ERRORS, margin=0.01, assurance=Assurance.RULED_OUT)
    few, many = judged(arm(400, 2), careful), judged(arm(4000, 2), careful)
    assert (few.kind, many.kind) == (Kind.INCONCLUSIVE, Kind.SUCCESS)


def test_a_slower_first_token_can_be_ruled_out_too() -> None:
    careful = Guardrail.of(Metric.FIRST_TOKEN, margin=0.2, assurance=Assurance.RULED_OUT)
    few, many = judged(arm(400, 2), careful), judged(arm(4000, 2), careful)
    assert (few.kind, many.kind) == (Kind.INCONCLUSIVE, Kind.SUCCESS)


def test_a_split_that_is_not_the_steps_is_inconclusive_whatever_else_is_seen() -> None:
    canary = arm(500, 2, errors=0.5)
    assert judged(canary, weight=1111).kind is Kind.FAILURE
    verdict = judged(canary, weight=2500)
    assert verdict.kind is Kind.INCONCLUSIVE
    assert verdict.reasons[0].startswith("The split is not the step's: ")
    assert verdict.look == 0, "nothing was looked at"


def test_the_split_counts_units_and_not_requests() -> None:
    assert judged(arm(2000, 2, units=30), stable=arm(500, 3, units=270), weight=1000).kind is Kind.SUCCESS


def test_at_full_weight_there_is_nothing_to_compare_with() -> None:
    assert judged(arm(500, 2), stable=Window(), weight=10_000).kind is Kind.SUCCESS
    assert judged(arm(300, 2), stable=Window(), weight=10_000).kind is Kind.INCONCLUSIVE


def test_one_busy_unit_that_always_fails_is_no_failure_of_the_canary() -> None:
    busy = Window.of(Sample("busy", error=True) for _ in range(40))
    assert judged(arm(460, 2) + busy, ERRORS).kind is not Kind.FAILURE
    spread = Window.of(Sample(f"busy-{number}", error=True) for number in range(40))
    assert judged(arm(460, 2) + spread, ERRORS).kind is Kind.FAILURE


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        (Metric.EMPTY, "empty"),
        (Metric.CUT, "cut"),
        (Metric.REPETITION, "repetitive"),
        (Metric.REFUSALS, "refused"),
        (Metric.SCHEMA, "invalid"),
    ],
)
def test_each_fault_of_answers_is_watched(metric: Metric, field: str) -> None:
    stable = arm(4000, 1, **{field: False})
    good, bad = (arm(450, 2, **{field: False}) + arm(50, 3, **{field: fault}) for fault in (False, True))
    assert judged(good, Guardrail.of(metric), stable=stable).kind is Kind.SUCCESS
    assert judged(bad, Guardrail.of(metric), stable=stable).kind is Kind.FAILURE


def test_thumbs_are_watched_where_there_are_any() -> None:
    thumbs = Guardrail.of(Metric.THUMBS)
    stable = STABLE + Window.of_thumbs((f"s{number}", number % 10 > 0) for number in range(500))
    unhappy = arm(500, 2) + Window.of_thumbs((f"c{number}", number % 2 > 0) for number in range(100))
    assert judged(arm(500, 2), thumbs, stable=stable).kind is Kind.SUCCESS
    assert judged(unhappy, thumbs, stable=stable).kind is Kind.FAILURE
    wanted = Guardrail.of(Metric.THUMBS, samples=50)
    assert judged(arm(500, 2), wanted, stable=stable).kind is Kind.INCONCLUSIVE


@pytest.mark.parametrize(("factor", "harmful"), [(4, ("higher", "both")), (0.25, ("lower", "both")), (1, ())])
def test_answers_may_become_longer_or_shorter_as_the_guardrail_says(factor: float, harmful: tuple[str, ...]) -> None:
    draw = random.Random(5)
    answers = [Sample(f"{n}", tokens=round(factor * draw.lognormvariate(4, 0.7)) + 1) for n in range(500)]
    for direction in Direction:
        verdict = judged(Window.of(answers), Guardrail.of(Metric.LENGTH, direction=direction))
        assert verdict.kind is (Kind.FAILURE if direction in harmful else Kind.SUCCESS)


def test_a_worse_evaluation_fails_at_any_time_and_a_missing_one_waits() -> None:
    stable = STABLE.scored(Score(0.8, 0.76, 0.84, 300))
    worse, alike = Score(0.5, 0.45, 0.55, 300), Score(0.79, 0.75, 0.83, 300)
    assert judged(Window().scored(worse), SCORE, stable=stable).kind is Kind.FAILURE
    assert judged(arm(500, 2).scored(alike), SCORE, stable=stable).kind is Kind.SUCCESS
    assert judged(arm(500, 2), SCORE, stable=stable).kind is Kind.INCONCLUSIVE


def scored(passed: int, of: int) -> Window:
    """With the interval that an evaluation has (Wilson's)."""
    known = proportion(passed, of)
    return arm(500, of).scored(Score(known.mean, known.low, known.high, known.n))


@pytest.mark.parametrize(("stable", "canary", "of"), [(17, 0, 19), (9, 0, 10), (5, 0, 5), (19, 0, 30)])
def test_a_small_set_that_the_canary_fails_fails_it(stable: int, canary: int, of: int) -> None:
    verdict = decide((SCORE,), scored(stable, of), scored(canary, of), look=0, steps=1, samples=400)
    assert verdict.kind is Kind.FAILURE
    assert decide((SCORE,), scored(stable, of), scored(stable, of), look=0, steps=1, samples=400).kind is Kind.SUCCESS


@pytest.mark.parametrize("of", [1, 2])
def test_a_set_of_a_line_or_two_can_tell_nothing(of: int) -> None:
    for canary in (0, of):
        verdict = judged(scored(canary, of), SCORE, ERRORS, stable=scored(of, of))
        assert verdict.kind is Kind.INCONCLUSIVE


EXACT = Guardrail.of(Metric.EVALUATION, margin=0.0)


def likelihood(*values: float) -> Window:
    """With the interval that an evaluation has (Student's)."""
    known = mean(values, most=0.0)
    return arm(500, 5).scored(Score(known.mean, known.low, known.high, known.n, passes=False))


@pytest.mark.parametrize("rail", [SCORE, EXACT])
def test_equal_scores_without_a_spread_are_no_harm(rail: Guardrail) -> None:
    same = likelihood(*[-1.5] * 30)
    assert judged(same, rail, stable=same).kind is Kind.SUCCESS
    assert judged(likelihood(*[-1.6] * 30), rail, stable=same).kind is Kind.FAILURE


def test_a_mean_of_two_items_is_as_uncertain_as_two_items_are() -> None:
    """A t of 19 with one degree of freedom: p = 0.017, where the normal distribution would have it impossible."""
    assert judged(likelihood(-9.0, -9.6), SCORE, stable=likelihood(-1.0, -1.6)).kind is not Kind.FAILURE
    assert judged(likelihood(*[-9.0, -9.6] * 5), SCORE, stable=likelihood(*[-1.0, -1.6] * 5)).kind is Kind.FAILURE


def sent(units: int, *, each: int = 0, count: int = 300, name: str = "c", **fields: Any) -> Window:
    """`count` requests of so many units, in turn; those of all arms are others."""
    return Window.of(Sample(f"{name}-{n % units}", **fields) for n in range(each * units or count))


EMPTY = Guardrail.of(Metric.EMPTY)


@pytest.mark.parametrize(("units", "others"), [(1, 1), (3, 3), (7, 7), (1, 300), (3, 30), (30, 3), (7, 300)])
@pytest.mark.parametrize(
    ("rail", "good", "bad"),
    [(EMPTY, {"empty": False}, {"empty": True}), (FIRST_TOKEN, {"first_token": 0.1}, {"first_token": 9.0})],
)
def test_a_few_units_are_never_a_success(
    units: int, others: int, rail: Guardrail, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    stable = sent(others, name="s", **good)
    for fields in (good, bad):
        verdict = decide((rail,), stable, sent(units, **fields), look=0, steps=4, samples=300)
        assert verdict.kind is not Kind.SUCCESS
        assert fields is bad or verdict.kind is Kind.INCONCLUSIVE


def test_what_a_few_units_lack_is_said() -> None:
    verdict = judged(sent(2, empty=False), EMPTY, stable=sent(90, name="s", empty=False), look=9)
    assert verdict.findings[0].standing is Standing.BLIND
    assert "empty answers: too few samples or units (300 of the canary, 300 of stable)" in str(verdict.findings[0])


def test_a_dozen_busy_units_are_enough() -> None:
    stable = arm(4000, 1, units=100, empty=False)
    good = sent(12, each=50, error=False, first_token=0.3, empty=False)
    bad = sent(12, each=50, error=False, first_token=30.0, empty=False)
    assert judged(good, ERRORS, FIRST_TOKEN, EMPTY, stable=stable).kind is Kind.SUCCESS
    assert judged(bad, ERRORS, FIRST_TOKEN, EMPTY, stable=stable).kind is Kind.FAILURE


def test_times_of_one_slow_unit_hide_no_slow_canary() -> None:
    """Ten units an arm, one of which has all that is above the p95: that is hardly more than ten samples."""
    times = [3.0 if n % 10 == 0 else 0.2 + n % 7 / 100 for n in range(400)]
    low, high = (
        Window.of(Sample(f"{name}-{n % 10}", first_token=factor * value) for n, value in enumerate(times))
        for name, factor in (("s", 1.0), ("c", 90.0))
    )
    for canary in (low, high):
        assert decide((FIRST_TOKEN,), low, canary, look=0, steps=4, samples=400).kind is not Kind.SUCCESS


@pytest.mark.parametrize("few", [10, 20, 30])
def test_too_few_times_for_a_p95_are_no_success(few: int) -> None:
    rails = (FIRST_TOKEN, ERRORS, EMPTY)
    slow, fast = (timed(*(value * v for v in SPREAD), times=few) for value in (90, 1))
    assert decide(rails, fast, slow, look=0, steps=4, samples=few).kind is Kind.INCONCLUSIVE


@pytest.mark.parametrize("few", [1, 5, 19])
def test_a_step_that_asks_for_little_waits_for_what_can_be_judged(few: int) -> None:
    verdict = decide((ERRORS,), STABLE, arm(few, 2, errors=1), look=0, steps=1, samples=few)
    assert verdict.kind is Kind.INCONCLUSIVE
    assert decide((ERRORS,), STABLE, arm(few, 2, errors=0), look=0, steps=1, samples=few).kind is Kind.INCONCLUSIVE


def test_a_dozen_thumbs_down_hold_a_step_and_a_dozen_thumbs_up_do_not() -> None:
    stable = STABLE + Window.of_thumbs((f"s{number}", number % 10 > 0) for number in range(500))
    for up, kind in ((True, Kind.SUCCESS), (False, Kind.INCONCLUSIVE)):
        canary = arm(500, 2) + Window.of_thumbs((f"c{number}", up) for number in range(12))
        assert judged(canary, Guardrail.of(Metric.THUMBS), stable=stable).kind is kind


def left(after: float, times: int = 200) -> Window:
    """Each of a unit of its own, whose client left without a token."""
    return Window.of(Sample(f"left-{n}", first_token=after, waiting=True) for n in range(times))


def test_a_canary_that_hangs_until_its_clients_leave_is_slow() -> None:
    stable = timed(*SPREAD, times=2000)
    assert judged(left(30.0, 500), FIRST_TOKEN, stable=stable).kind is Kind.FAILURE
    half = timed(*SPREAD, times=250) + left(30.0, 250)
    assert judged(half, FIRST_TOKEN, stable=stable).kind is Kind.FAILURE


def test_a_canary_whose_clients_leave_early_is_not_known_to_be_fast() -> None:
    stable = timed(*(20 * value for value in OUTLIER), times=2000)
    assert judged(left(1.0, 500), FIRST_TOKEN, stable=stable).kind is Kind.INCONCLUSIVE


def test_clients_that_leave_both_arms_alike_are_no_harm() -> None:
    stable = timed(*SPREAD, times=2000) + left(0.05, 200) + left(5.0, 100)
    canary = timed(*SPREAD, times=400) + left(0.05, 40) + left(5.0, 20)
    verdict = judged(canary, FIRST_TOKEN, stable=stable)
    assert verdict.kind is Kind.SUCCESS
    assert verdict.findings[0].samples == (2300, 460)


def test_a_rollout_without_guardrails_succeeds_by_its_samples() -> None:
    assert decide((), STABLE, arm(400, 2), look=0, steps=1, samples=400).kind is Kind.SUCCESS


FINE, ERROR, NON_FINITE = Outcome


def test_consecutive_engine_errors_trip() -> None:
    assert tripped([FINE, *[ERROR] * 5]) == "5 engine errors in a row"
    assert tripped([ERROR] * 3, limit=3) == "3 engine errors in a row"


@pytest.mark.parametrize("recent", [[], [ERROR] * 4, [*[ERROR] * 9, FINE], [ERROR, FINE] * 9])
def test_fewer_or_interrupted_ones_do_not(recent: list[Outcome]) -> None:
    assert tripped(recent) is None


def test_an_engine_that_fails_stable_too_is_not_the_canarys_fault() -> None:
    assert tripped([ERROR] * 5, [FINE, FINE, *[ERROR] * 3]) is None
    assert tripped([ERROR] * 5, [*[ERROR] * 9, *[FINE] * 5]) is not None


def test_logits_that_are_not_finite_trip_at_once() -> None:
    assert tripped([NON_FINITE, FINE], [NON_FINITE]) is not None
