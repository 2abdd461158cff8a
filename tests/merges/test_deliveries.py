"""A tenant's endpoints are told of each state that one of its merges really enters, and nobody else's are."""

import pytest

from audit.services import SYSTEM
from merges.models import Merge, State
from merges.services import cancel_merge, discard_merge, running, waiting
from registry.models import Version
from tenants.models import Tenant
from tests.merges.asking import INTO_BASE, Clients, Run, ask, show
from tests.webhooks.told import listen


def test_each_state_of_a_merge_is_told(
    two: list[Version], acme: Tenant, globex: Tenant, client_of: Clients, run: Run
) -> None:
    told = listen(acme, globex, to="merge.*")
    merge = ask(client_of(acme), INTO_BASE)
    assert told(acme) == ["merge.queued"]
    assert run(merge, seconds=-1) is None  # its shift is over at once
    assert run(merge) == State.READY
    discard_merge(Merge.objects.get(pk=merge["id"]), actor=SYSTEM)
    states = ["queued", "running", "queued", "running", "ready", "expired"]
    assert told(acme) == [f"merge.{state}" for state in states]
    assert told(globex) == []


def test_turns_that_go_to_others_are_nobody_s_news(
    two: list[Version], acme: Tenant, client_of: Clients, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = listen(acme, to="merge.*")
    merge = ask(client_of(acme), INTO_BASE)
    monkeypatch.setattr(running, "SHORT", 0.0)
    for _ in range(2):
        assert run(merge, others_wait=lambda: True) is None
        assert show(client_of(acme), merge)["state"] == "running"
        assert [str(job) for job, *_ in waiting()] == [merge["id"]]  # for any worker to go on with
    assert run(merge) == State.READY
    assert told(acme) == ["merge.queued", "merge.running", "merge.ready"]


def test_a_cancelled_merge_and_one_that_fails_are_told(
    two: list[Version], acme: Tenant, client_of: Clients, run: Run
) -> None:
    told = listen(acme, to="merge.*")
    cancelled, failed = ask(client_of(acme), INTO_BASE), ask(client_of(acme), INTO_BASE)
    cancel_merge(Merge.objects.get(pk=cancelled["id"]), actor=SYSTEM)
    Merge.objects.filter(pk=failed["id"]).update(attempts=99)
    assert run(failed) is None
    assert told(acme) == ["merge.queued", "merge.queued", "merge.cancelled", "merge.failed"]
