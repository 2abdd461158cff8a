"""Evaluation sets, runs and scores in the console."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone

from audit.models import Action, Event
from audit.services import SYSTEM
from evaluations.lines import MAX_BYTES
from evaluations.models import Evaluation, EvaluationSet, Result, State
from evaluations.services import create_set, request_evaluation
from registry.models import Version
from tenants.models import Role

from .conftest import Yard
from .forms import assert_by, errors, path, recorded

LINE = b'{"messages": [{"role": "user", "content": "hi"}], "scorer": "exact", "expected": "hello"}\n'


def upload(raw: bytes) -> SimpleUploadedFile:
    return SimpleUploadedFile("set.jsonl", raw)


def settle(evaluation: Evaluation, mean: float) -> None:
    """As a worker leaves one that it has worked through."""
    Evaluation.objects.filter(pk=evaluation.pk).update(state=State.RUNNING)
    item = evaluation.set.items.get()
    Result.objects.create(evaluation=evaluation, item=item, value=mean, answer="<b>bold</b>", tokens=3)
    score: dict[str, Any] = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "done": 1}
    Evaluation.objects.filter(pk=evaluation.pk).update(state=State.SUCCEEDED, finished_at=timezone.now(), **score)


def test_a_set_is_added_run_and_deleted_on_the_record(desk: Client, operator: User, ours: Yard) -> None:
    fields = {"tenant": str(ours.tenant.pk), "name": "greetings"}
    desk.post(path(EvaluationSet, "add"), {**fields, "file": upload(LINE)})
    made = EvaluationSet.objects.get()
    assert made.count == 1
    assert_by(recorded(Action.EVALUATION_SET_CREATED), operator)
    go = desk.post(path(EvaluationSet, "run", made.pk)).headers["Location"]
    assert desk.get(go).context["form"]["set"].value() == str(made.pk)
    answer = desk.post(path(Evaluation, "add"), {"set": str(made.pk), "version": str(ours.ready.pk)})
    run = Evaluation.objects.get()
    assert (run.version, answer.headers["Location"]) == (ours.ready, path(Evaluation, "change", run.pk))
    assert_by(recorded(Action.EVALUATION_REQUESTED), operator)
    under_way = errors(desk.post(path(EvaluationSet, "remove", made.pk)))
    assert "under way" in under_way["__all__"][0]
    desk.post(path(Evaluation, "cancel", run.pk))
    assert Evaluation.objects.get().state == State.CANCELLED
    desk.post(path(EvaluationSet, "remove", made.pk))
    assert not EvaluationSet.objects.exists()
    assert_by(recorded(Action.EVALUATION_SET_DELETED), operator)


def test_a_set_that_makes_no_sense_is_refused_at_its_field(desk: Client, ours: Yard) -> None:
    fields = {"tenant": str(ours.tenant.pk), "name": "greetings"}
    faulty = errors(desk.post(path(EvaluationSet, "add"), {**fields, "file": upload(LINE + b"{}\n")}))
    assert "line 2" in faulty["file"][0]
    assert "file" in errors(desk.post(path(EvaluationSet, "add"), {**fields, "file": upload(b" " * (MAX_BYTES + 1))}))
    assert "file" in errors(desk.post(path(EvaluationSet, "add"), fields))
    assert "name" in errors(desk.post(path(EvaluationSet, "add"), {**fields, "name": "a b", "file": upload(LINE)}))
    assert not EvaluationSet.objects.exists()


def test_scores_stand_beside_each_other_and_answers_are_no_markup(desk: Client, ours: Yard, strangers: Yard) -> None:
    greetings = create_set(ours.tenant, "greetings", LINE, actor=SYSTEM)
    digest = f"sha256:{'9' * 64}"
    Version.objects.create(adapter=ours.adapter, number=9, state="ready", digest=digest, uploader="test")
    for number, mean in ((1, 0.25), (9, 0.75)):
        run = request_evaluation(ours.tenant, greetings, f"acme-support@v{number}", actor=SYSTEM)
        settle(run, mean)
    theirs = create_set(strangers.tenant, "greetings", LINE, actor=SYSTEM)
    settle(request_evaluation(strangers.tenant, theirs, "globex-support@v1", actor=SYSTEM), 0.5)
    page = desk.get(path(EvaluationSet, "change", greetings.pk)).content.decode()
    assert page.index("acme-support@v1") < page.index("0.250") < page.index("acme-support@v9") < page.index("0.750")
    assert "globex-support" not in page
    shown = desk.get(path(Evaluation, "change", run.pk)).content.decode()
    assert "0.750 (0.650 to 0.850)" in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown
    assert "<b>bold" not in shown


def test_a_member_may_what_their_role_may_and_nothing_at_a_strangers(
    ours: Yard, strangers: Yard, member_of: Callable[..., Client]
) -> None:
    editor, viewer = member_of(ours.tenant, Role.EDITOR), member_of(ours.tenant)
    mine = create_set(ours.tenant, "mine", LINE, actor=SYSTEM)
    theirs = create_set(strangers.tenant, "theirs", LINE, actor=SYSTEM)
    events = Event.objects.count()
    wanted = {"set": str(mine.pk), "version": str(ours.ready.pk)}
    assert viewer.get(path(EvaluationSet, "change", mine.pk)).status_code == 200
    assert viewer.post(path(Evaluation, "add"), wanted).status_code == 403
    assert editor.post(path(EvaluationSet, "remove", mine.pk)).status_code == 403
    assert editor.get(path(EvaluationSet, "change", theirs.pk)).status_code == 302
    for foreign in ({"set": str(theirs.pk)}, {"version": str(strangers.ready.pk)}):
        assert list(errors(editor.post(path(Evaluation, "add"), {**wanted, **foreign}))) == list(foreign)
    fields = {"tenant": str(strangers.tenant.pk), "name": "x", "file": upload(LINE)}
    assert "tenant" in errors(editor.post(path(EvaluationSet, "add"), fields))
    assert Event.objects.count() == events
    assert editor.post(path(Evaluation, "add"), wanted).status_code == 302
    assert Evaluation.objects.get().tenant == ours.tenant


def test_an_operator_cannot_have_one_tenants_version_asked_another_tenants_set(
    desk: Client, ours: Yard, strangers: Yard
) -> None:
    theirs = create_set(strangers.tenant, "theirs", LINE, actor=SYSTEM)
    refused = errors(desk.post(path(Evaluation, "add"), {"set": str(theirs.pk), "version": str(ours.ready.pk)}))
    assert "does not exist" in refused["__all__"][0]
    assert not Evaluation.objects.exists()
