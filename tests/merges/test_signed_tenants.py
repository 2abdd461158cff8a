"""A tenant takes only versions that it has signed: what the platform combines is none, and it says so in time."""

import base64
from typing import Any

import pytest
from rest_framework.test import APIClient

from audit.models import Event
from audit.services import SYSTEM
from merges.models import Merge, State
from merges.services import run_merge
from registry.models import State as VersionState
from registry.models import Version
from registry.services import add_signing_key, ensure_adapter, require_signatures, validate_version
from tenants.models import Tenant
from tests.merges.asking import COMBINE, INTO_BASE, Clients, Files, Pushes, ask, show


@pytest.fixture
def merger(acme: Tenant, push: Pushes, client_of: Clients) -> APIClient:
    """Of acme, which has two versions, as yet unsigned, and a key to sign with."""
    push(acme, "support")
    push(acme, "query", 1)
    ensure_adapter(acme, "mixed", actor=SYSTEM)
    add_signing_key(acme, "ci", base64.b64encode(bytes(32)).decode(), actor=SYSTEM)
    return client_of(acme)


def require(tenant: Tenant) -> None:
    require_signatures(Tenant.objects.get(pk=tenant.pk), True, actor=SYSTEM)


def work(told: Any, commits: Any) -> State | None:
    with commits(execute=True):
        return run_merge(told["id"])


def test_a_merge_into_a_version_is_refused_by_name_and_one_into_the_base_is_not(
    acme: Tenant, merger: APIClient
) -> None:
    require(acme)
    error = ask(merger, COMBINE, 400)["error"]
    assert (error["code"], error["param"]) == ("signature_required", "kind")
    assert "add_weighted_adapter" in error["message"]
    assert not Merge.objects.exists()
    assert ask(merger, INTO_BASE)["state"] == "queued"


def test_when_it_is_decided_while_the_merge_runs_it_fails_and_nothing_is_left(
    acme: Tenant,
    merger: APIClient,
    django_capture_on_commit_callbacks: Any,
    files_of: Files,
) -> None:
    told = ask(merger, COMBINE)
    require(acme)
    assert work(told, django_capture_on_commit_callbacks) == State.FAILED
    shown = show(merger, told)
    assert (shown["finding"]["rule"], shown["result"]) == ("signature-missing", None)
    assert not Version.objects.filter(adapter__name="mixed").exists()
    assert files_of() == set()
    assert Event.objects.filter(action="merge:failed", target=f"merge {told['id']}").count() == 1


def test_when_it_is_decided_before_its_version_is_looked_at_that_is_rejected(
    acme: Tenant,
    merger: APIClient,
    django_capture_on_commit_callbacks: Any,
    files_of: Files,
) -> None:
    told = ask(merger, COMBINE)
    assert work(told, django_capture_on_commit_callbacks) == State.READY
    require(acme)
    made = Version.objects.get(adapter__name="mixed")
    with django_capture_on_commit_callbacks(execute=True):
        assert validate_version(made.pk) == VersionState.REJECTED
    made.refresh_from_db()
    assert [finding["rule"] for finding in made.findings] == ["signature-missing"]
    assert files_of() == set()


def test_a_stranger_who_asks_for_no_signatures_merges_as_before(
    acme: Tenant, globex: Tenant, merger: APIClient, push: Pushes, client_of: Clients
) -> None:
    require(acme)
    push(globex, "support")
    push(globex, "query", 1)
    ensure_adapter(globex, "mixed", actor=SYSTEM)
    assert ask(client_of(globex), COMBINE)["state"] == "queued"
