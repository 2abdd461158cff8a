"""What is kept of a request: how it went, never what it said."""

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.recorder import Recorder
from rollouts.models import Arm, Cause, Outcome, Rollout, Sample
from rollouts.observations import LONGEST, Observation, fits, record, refuses, repetitive
from rollouts.routing import Trial

SCHEMA = {"type": "object", "required": ["order"], "properties": {"order": {"type": "string"}}}


def trial(rollout: Rollout | None = None, **fields: Any) -> Trial:
    known = {"rollout": rollout.pk, "tenant": rollout.adapter.tenant.pk} if rollout else {}
    values = {"rollout": uuid.uuid4(), "tenant": uuid.uuid4(), "step": 0, "unit": 7, "counted": True, **known}
    return Trial(**{**values, "arm": Arm.CANARY, **fields})


def heard(text: str, **fields: Any) -> Observation:
    seen = Observation(trial(**fields), Arm.CANARY, response="resp_1")
    seen.hear(text, list(range(len(text.split()))))
    seen.finished("stop")
    return seen


def test_an_answer_is_judged_and_forgotten() -> None:
    sample = heard('{"order": "A-1"}', schema=SCHEMA).sample()
    assert (sample.outcome, sample.empty, sample.refusal, sample.repetitive, sample.valid) == (
        Outcome.OK, False, False, False, True,
    )  # fmt: skip
    assert not any("A-1" in str(value) for value in vars(sample).values())


@pytest.mark.parametrize(("text", "valid"), [('{"order": 3}', False), ("no JSON", False), ("[" * 5000, False)])
def test_an_answer_that_does_not_fit_the_schema_is_not_valid(text: str, valid: bool) -> None:
    assert heard(text, schema=SCHEMA).sample().valid is valid
    assert heard(text).sample().valid is None
    assert not fits("NaN", '{"type": "string"}')


def test_a_failed_or_abandoned_answer_is_not_judged() -> None:
    for seen in (Observation(trial(), Arm.CANARY), heard("x")):
        seen.fail("internal_error")
        sample = seen.sample()
        assert (sample.outcome, sample.code, sample.empty, sample.valid) == (
            Outcome.ERROR,
            "internal_error",
            None,
            None,
        )
    abandoned = Observation(trial(schema=SCHEMA), Arm.CANARY)
    assert (abandoned.sample().outcome, abandoned.sample().valid) == (Outcome.ABANDONED, None)


def test_a_client_that_left_before_the_first_token_waited_at_least_so_long() -> None:
    seen = Observation(trial(), Arm.CANARY)
    seen.started -= 3
    seen.left()
    seen.started -= 100  # it is kept later, which says nothing
    assert (seen.sample().outcome, seen.sample().unanswered) == (Outcome.ABANDONED, True)
    assert seen.sample().first_token == pytest.approx(103, abs=1)
    late = Observation(trial(), Arm.CANARY)
    late.hear("a", [1])
    late.left()
    assert not late.sample().unanswered
    assert (late.sample().first_token or 1) < 1
    shadow = Observation(trial(), Arm.CANARY, shadow=True)
    shadow.left()
    assert shadow.sample().first_token is None


def test_what_failed_before_its_first_token_has_no_time() -> None:
    seen = Observation(trial(), Arm.CANARY)
    seen.fail("internal_error")
    seen.left()
    assert (seen.sample().first_token, seen.sample().unanswered) == (None, False)


def test_other_choices_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice's tokens at seconds 2, 3 and 4; the second's before, between and long after."""
    clock = iter([2.0, 3.0, 4.0])
    seen = Observation(trial(), Arm.CANARY, started=0.0)
    monkeypatch.setattr("rollouts.observations.time", SimpleNamespace(monotonic=lambda: next(clock)))
    for choice in (1, 0, 1, 0, 1, 0, 1, 1):
        seen.hear("a", [1], choice=choice)
    seen.finished("stop")
    sample = seen.sample()
    assert (sample.first_token, sample.inter_token, sample.tokens) == (2.0, 1.0, 3)


def test_an_observation_holds_no_more_than_its_bounds() -> None:
    seen = Observation(trial(schema=SCHEMA), Arm.CANARY)
    for _ in range(100):
        seen.hear("x" * 1000, [1] * 100)
    seen.finished("length")
    assert (len(seen.text), len(seen.tokens), seen.count) == (LONGEST, 1024, 10_000)
    assert (seen.sample().valid, seen.sample().repetitive, seen.sample().tokens) == (None, True, 10_000)


def test_repetition_and_refusals_are_told_from_plain_answers() -> None:
    assert repetitive([1, 2, 3, 4] * 10)
    assert not repetitive(list(range(40)))
    assert not repetitive([1] * 5)
    assert all(map(refuses, ["I'm sorry, but I can't", "I cannot help", "As an AI model", "I\u2019m unable to"]))
    assert not any(map(refuses, ["Sorry-looking dogs", "I can help", "It is unable", '{"a": "I cannot"}']))


def test_a_batch_is_kept_and_says_whose_canary_failed(begin: Any) -> None:
    rollout = begin()
    bad = Observation(trial(rollout), Arm.CANARY)
    bad.fail("adapter_missing")
    fine = Observation(trial(rollout, arm=Arm.STABLE), Arm.STABLE)
    assert record([fine]) == set()
    assert record([bad, fine]) == {rollout.pk}
    assert Sample.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_failures_trip_their_rollout_when_they_are_kept_and_wait_for_no_tick(begin: Any) -> None:
    rollout = begin()

    async def fail_five_times() -> None:
        recorder = Recorder()
        for _ in range(5):
            seen = Observation(trial(rollout), Arm.CANARY)
            seen.fail("adapter_missing")
            recorder.put(seen)
        await recorder.close()

    asyncio.run(fail_five_times())
    rollout.refresh_from_db()
    assert rollout.cause == Cause.TRIPWIRE


@pytest.mark.django_db(transaction=True)
def test_what_belongs_to_no_rollout_any_more_is_dropped() -> None:
    record([Observation(trial(), Arm.CANARY)])
    assert not Sample.objects.exists()
