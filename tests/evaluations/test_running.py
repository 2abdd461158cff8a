"""An evaluation's way to its score: asked over HTTP, resumed after a kill, cancelled, failed, never counted twice."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.module_loading import import_string

from apikeys.models import ApiKey
from audit.models import Event
from audit.services import SYSTEM
from evaluations.errors import EvaluationOver, EvaluationUnderWay, SetInUse
from evaluations.intervals import Score, mean, proportion
from evaluations.models import Evaluation, EvaluationSet, Result, State
from evaluations.services import (
    cancel_evaluation,
    comparison,
    delete_set,
    latest_score,
    leases,
    resume_evaluations,
    run_evaluation,
    running,
    score_pairs,
)
from registry.errors import ModelNotFound
from registry.models import Version
from tenants.models import Tenant
from tests.evaluations.conftest import DataPlane, failed, line, said

Versions = Callable[..., Version]
Sets = Callable[..., EvaluationSet]
Asks = Callable[..., Evaluation]

ROWS = [line(content, "exact", "yes") for content in ("yes", "no", " yes\n", "yes!")]


def reread(evaluation: Evaluation) -> Evaluation:
    return Evaluation.objects.get(pk=evaluation.pk)


def actions(tenant: Tenant) -> list[str]:
    events = Event.objects.for_tenant(tenant).filter(action__startswith="evaluation:").order_by("number")
    return [event.action for event in events]


def test_every_item_is_asked_and_the_share_that_passed_is_the_score(
    acme: Tenant, globex: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    version, greetings = make_version(acme), make_set(acme, *ROWS)
    evaluation = ask_for(acme, greetings)
    assert run_evaluation(evaluation.pk) == State.SUCCEEDED
    done = reread(evaluation)
    assert (done.model, done.done, done.worker) == ("acme/support@v1", 4, None)
    assert done.score == latest_score(version, greetings) == proportion(2, 4)
    results = Result.objects.for_tenant(acme).order_by("item__number").values_list("answer", "value")
    assert list(results) == [("yes", 1), ("no", 0), (" yes\n", 1), ("yes!", 0)]
    assert {asked["model"] for asked in data_plane.asked} == {"acme/support@v1"}
    assert (data_plane.asked[0]["max_tokens"], data_plane.asked[0]["temperature"]) == (256, 0)
    assert actions(acme) == ["evaluation:requested", "evaluation:succeeded"]
    assert actions(globex) == []
    assert run_evaluation(evaluation.pk) is None  # delivered once more: nothing happens
    assert len(data_plane.asked) == 4


def test_its_key_may_only_infer_in_the_background_on_that_adapter_and_is_revoked(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    make_version(acme)
    run_evaluation(ask_for(acme, make_set(acme)).pk)
    key = ApiKey.objects.for_tenant(acme).get()
    assert (key.scopes, key.adapters) == (["inference:background"], ["support"])
    assert key.revoked_at is not None
    assert key.expires_at is not None
    assert key.expires_at < timezone.now() + timedelta(hours=1)
    (used,) = data_plane.keys
    assert key.prefix in used


def test_likelihoods_are_averaged_with_students_interval(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    values = {"ab": [-1.0, -2.0], "abcd": [-0.5, -0.5, -0.25, -0.75]}

    def reply(body: dict[str, Any]) -> Any:
        assert body["logprobs"] is True
        assert "max_tokens" not in body
        content = [{"logprob": value} for value in values[body["forced_answer"]]]
        choice = {"message": {"content": body["forced_answer"]}, "logprobs": {"content": content}}
        return 200, {}, {"choices": [choice], "usage": {"completion_tokens": len(content)}}

    data_plane.reply = reply
    version = make_version(acme)
    likely = make_set(acme, *(line("x", "log-likelihood", expected) for expected in values))
    assert run_evaluation(ask_for(acme, likely).pk) == State.SUCCEEDED
    score = latest_score(version, likely)
    assert score is not None
    assert (score.mean, score.n, score.high) == (-1.0, 2, 0.0)
    assert score == mean([-1.5, -0.5], most=0.0)


def test_a_busy_or_broken_data_plane_is_asked_again(
    acme: Tenant,
    make_version: Versions,
    make_set: Sets,
    ask_for: Asks,
    data_plane: DataPlane,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evaluations.asking.LONGEST_PAUSE", 0.02)
    faults = [failed(503), failed(429, Retry_After="1"), failed(500), (200, {}, {})]
    data_plane.reply = lambda body: faults.pop() if len(faults) > 1 else said("yes")
    make_version(acme)
    evaluation = ask_for(acme, make_set(acme, *ROWS))
    assert run_evaluation(evaluation.pk) in (State.SUCCEEDED, State.FAILED)
    assert reread(evaluation).state == State.SUCCEEDED, reread(evaluation).error
    assert len(data_plane.asked) == 4 + 3


def test_what_the_data_plane_refuses_fails_the_evaluation_with_the_line(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    long = failed(400, "context_length_exceeded")
    data_plane.reply = lambda body: long if body["messages"][-1]["content"] == "no" else said("yes")
    version, greetings = make_version(acme), make_set(acme, *ROWS)
    evaluation = ask_for(acme, greetings)
    assert run_evaluation(evaluation.pk) == State.FAILED
    assert reread(evaluation).error == "line 2: context_length_exceeded: No."
    assert (reread(evaluation).score, latest_score(version, greetings)) == (None, None)
    assert actions(acme)[-1] == "evaluation:failed"
    ask_for(acme, greetings)  # may be tried again


def test_a_killed_workers_results_are_kept_and_only_the_rest_is_asked(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    make_version(acme)
    evaluation = ask_for(acme, make_set(acme, *ROWS))
    killed = leases.claim(evaluation.pk)
    assert killed is not None
    items = list(evaluation.set.items.all())
    found = [Result(evaluation=evaluation, item=item, value=1, answer="yes") for item in items[:3]]
    assert leases.keep(killed, found[:2])
    assert leases.keep(killed, found[1:2])  # again: it counts once
    assert reread(evaluation).done == 2

    assert run_evaluation(evaluation.pk) is None  # the lease lasts
    assert resume_evaluations() == 0
    Evaluation.objects.filter(pk=evaluation.pk).update(leased_until=timezone.now() - timedelta(seconds=1))
    assert (resume_evaluations(), resume_evaluations()) == (1, 0)
    assert run_evaluation(evaluation.pk) == State.SUCCEEDED
    assert sorted(asked["messages"][0]["content"] for asked in data_plane.asked) == [" yes\n", "yes!"]
    assert reread(evaluation).score == proportion(3, 4)

    assert leases.keep(killed, found) is False  # it wakes up: too late
    assert (leases.succeed(killed), leases.fail(killed, "x")) == (None, None)
    assert not ApiKey.objects.for_tenant(acme).filter(revoked_at=None).exists()


def test_a_cancelled_evaluation_is_left_within_a_beat(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    make_version(acme)
    greetings = make_set(acme, *ROWS * 5)
    evaluation = ask_for(acme, greetings)

    keep = leases.keep

    def cancelled_meanwhile(lease: leases.Lease, results: list[Result]) -> bool:
        if results and reread(evaluation).state == State.RUNNING:
            cancel_evaluation(evaluation, actor=SYSTEM)
        return keep(lease, results)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "keep", cancelled_meanwhile)
        assert run_evaluation(evaluation.pk) is None
    assert (reread(evaluation).state, reread(evaluation).done) == (State.CANCELLED, 0)
    assert len(data_plane.asked) <= 2 * running.AT_ONCE
    assert not ApiKey.objects.for_tenant(acme).filter(revoked_at=None).exists()
    with pytest.raises(EvaluationOver):
        cancel_evaluation(evaluation, actor=SYSTEM)


def test_a_shift_ends_and_the_next_goes_on(
    acme: Tenant,
    make_version: Versions,
    make_set: Sets,
    ask_for: Asks,
    data_plane: DataPlane,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
) -> None:
    monkeypatch.setattr(running, "SHIFT", 0.0)
    make_version(acme)
    evaluation = ask_for(acme, make_set(acme, *ROWS * 3))
    shifts = 0
    while reread(evaluation).state != State.SUCCEEDED:
        with django_capture_on_commit_callbacks() as enqueued:
            run_evaluation(evaluation.pk)
        shifts += 1
        assert shifts < 20
        assert len(enqueued) == (reread(evaluation).state == State.RUNNING)
    assert shifts > 1
    assert reread(evaluation).done == 12


def test_what_never_gets_anywhere_is_given_up(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks
) -> None:
    make_version(acme)
    evaluation = ask_for(acme, make_set(acme))
    for _ in range(leases.ATTEMPTS):
        lease = leases.claim(evaluation.pk)
        assert lease is not None
        leases.hand_over(lease)
    assert leases.claim(evaluation.pk) is None
    assert reread(evaluation).state == State.FAILED
    assert actions(acme) == ["evaluation:requested", "evaluation:failed"]


def test_one_evaluation_of_a_model_on_a_set_at_a_time(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks
) -> None:
    make_version(acme)
    greetings = make_set(acme)
    for model in ("support", "tiny"):
        evaluation = ask_for(acme, greetings, model)
        with pytest.raises(EvaluationUnderWay):
            ask_for(acme, greetings, model)
        with pytest.raises(SetInUse):
            delete_set(greetings, actor=SYSTEM)
        cancel_evaluation(evaluation, actor=SYSTEM)
        cancel_evaluation(ask_for(acme, greetings, model), actor=SYSTEM)
    delete_set(greetings, actor=SYSTEM)
    assert not Evaluation.objects.exists()


def test_a_stranger_can_neither_name_the_model_nor_see_its_scores(
    acme: Tenant, globex: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    make_version(acme)
    run_evaluation(ask_for(acme, make_set(acme)).pk)
    theirs = make_set(globex)
    for model in ("support", "acme/support", "acme/support@v1", "nothing"):
        with pytest.raises(ModelNotFound):
            ask_for(globex, theirs, model)
    assert comparison(globex, None) == comparison(globex, "support") == []
    assert comparison(acme, "support")[0].version == 1


def test_the_newest_score_counts_and_the_base_is_beside_the_versions(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    for _ in range(2):
        make_version(acme)
    greetings, other = make_set(acme, *ROWS), make_set(acme, line("x"), name="other")
    for model in ("support@v2", "support@v1", "tiny"):
        run_evaluation(ask_for(acme, greetings, model).pk)
    data_plane.reply = lambda body: said("yes")
    run_evaluation(ask_for(acme, greetings, "support@v2").pk)
    run_evaluation(ask_for(acme, other, "support@v2").pk)
    rows = comparison(acme, "support")
    assert [(row.model, row.version) for row in rows] == [
        ("tiny", None),
        ("acme/support@v1", 1),
        ("acme/support@v2", 2),
    ]
    scores = [{name: one.mean for name, one in row.evaluations.items()} for row in rows]
    assert scores == [{"greetings": 0.5}, {"greetings": 0.5}, {"greetings": 1.0, "other": 0.0}]
    assert comparison(acme, "support", ["else"]) == rows[:1]


def test_two_versions_are_told_apart_item_by_item(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    first, second = make_version(acme), make_version(acme)
    greetings, other = make_set(acme, *ROWS), make_set(acme, line("x"), name="other")
    run_evaluation(ask_for(acme, greetings, "support@v1").pk)
    assert score_pairs(second, first)["greetings"]["scores"][0] is None
    data_plane.reply = lambda body: said("yes")
    run_evaluation(ask_for(acme, greetings, "support@v2").pk)
    run_evaluation(ask_for(acme, other, "support@v2").pk)
    told = score_pairs(first, second)
    assert list(told) == ["greetings", "other"]
    assert [score["mean"] for score in told["greetings"]["scores"]] == [0.5, 1.0]
    assert told["greetings"]["difference"] == asdict(mean([0.0, 1.0, 0.0, 1.0]))
    assert (told["other"]["scores"][0], told["other"]["difference"]) == (None, None)
    assert score_pairs(second, first)["greetings"]["difference"]["mean"] == -0.5
    assert import_string(settings.VERSIONS_COMPARED_BY["scores"]) is score_pairs  # a diff shows it


def test_the_database_itself_holds_sets_states_and_scores_fast(
    acme: Tenant, make_version: Versions, make_set: Sets, ask_for: Asks, data_plane: DataPlane
) -> None:
    make_version(acme)
    greetings = make_set(acme)
    evaluation = ask_for(acme, greetings)
    run_evaluation(evaluation.pk)
    mine = Evaluation.objects.filter(pk=evaluation.pk)
    changes: list[Callable[[], object]] = [
        lambda: EvaluationSet.objects.update(count=9),
        lambda: greetings.items.update(expected="other"),
        lambda: mine.update(state=State.RUNNING),
        lambda: mine.update(mean=0.9),
        lambda: mine.update(model="acme/support@v2"),
        lambda: Result.objects.create(evaluation=evaluation, item=greetings.items.get(), value=1),
    ]
    for change in changes:
        with pytest.raises(Exception, match=r"Cannot|Invalid|duplicate|violates"), transaction.atomic():
            change()
    with pytest.raises(IntegrityError), transaction.atomic():
        Evaluation.objects.create(
            tenant=acme, set=greetings, base_model=evaluation.base_model, model="x", creator="x", state=State.SUCCEEDED
        )
    assert latest_score(reread(evaluation).version or Version(pk=uuid4()), greetings) == Score(
        *[getattr(reread(evaluation), name) for name in ("mean", "low", "high", "done")]
    )
