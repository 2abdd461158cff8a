"""Evaluations of several tenants: one of thousands of lines keeps nobody else's of one line waiting."""

from collections.abc import Callable

import pytest

from evaluations.models import Evaluation, EvaluationSet, State
from evaluations.services import running
from jobs import turns
from jobs.models import Share
from registry.models import Version
from tenants.models import Tenant
from tests.evaluations.conftest import DataPlane, line


def shift() -> str:
    """Serve somebody; whom."""
    before = dict(Share.objects.values_list("tenant__slug", "end"))
    turns.serve(turns.EVALUATIONS)
    return next(slug for slug, end in Share.objects.values_list("tenant__slug", "end") if end != before.get(slug))


def test_a_long_one_makes_room_for_a_stranger_s_and_goes_on_where_it_was(
    acme: Tenant,
    globex: Tenant,
    make_version: Callable[..., Version],
    make_set: Callable[..., EvaluationSet],
    ask_for: Callable[..., Evaluation],
    data_plane: DataPlane,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "SHORT", 0.0)
    for tenant in (acme, globex):
        make_version(tenant)
    long = ask_for(acme, make_set(acme, *(line(f"q{number}", expected="x") for number in range(60))))
    short = ask_for(globex, make_set(globex))
    shifts: list[str] = []
    while long.state != State.SUCCEEDED:
        shifts.append(shift())
        long.refresh_from_db()
        short.refresh_from_db()
        assert len(shifts) < 20
    assert short.state == State.SUCCEEDED
    assert shifts[0] == "acme", "its first shift was a short one, since another waits"
    assert shifts[-1] == "acme", "alone again, it is worked on to its end"
    assert set(shifts[1:-1]) == {"globex"}
    asked = [body["messages"][-1]["content"] for body in data_plane.asked]
    assert len(set(asked)) == 61
    assert len(asked) <= 61 + running.AT_ONCE * len(shifts), "only what was under way when it made room is asked twice"
