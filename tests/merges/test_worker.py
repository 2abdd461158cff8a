"""Merges by a real worker on the merges queue, from the request to the end."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from merges.models import Merge, State
from registry.models import State as VersionState
from registry.models import Version
from tenants.models import Tenant
from tests.processes import wait_for
from tests.workers import working


@pytest.fixture
def worker(transactional_db: None) -> Iterator[None]:
    with working("celery", "merges", "periodic"):
        yield


@pytest.mark.django_db(transaction=True)
def test_a_worker_does_both_kinds_of_merges_and_the_new_version_becomes_ready(
    acme: Tenant,
    push: Callable[..., Version],
    merged_in: Callable[[Version], Merge],
    combined: Callable[..., Merge],
    worker: None,
) -> None:
    one, two = push(acme, "support"), push(acme, "support", 1)
    merges: list[Any] = [merged_in(one).pk, combined(one, two, "dare_ties", density=0.5).pk]
    wait_for(lambda: Merge.objects.filter(pk__in=merges, state=State.READY).count() == 2, 60, "both merges")
    made = Version.objects.filter(adapter=one.adapter, number=3)
    wait_for(lambda: made.get().state == VersionState.READY, 60, "validation")
