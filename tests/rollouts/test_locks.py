"""What happens between two looks at the same row, by other connections as real as those of other processes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, connections

from audit.services import SYSTEM
from registry.models import Adapter, Alias
from rollouts import services
from rollouts.assignment import Units
from rollouts.models import OnNew, Rollout, State
from rollouts.routing import route
from rollouts.services import Plan
from tenants.models import Tenant
from tests.processes import wait_for

pytestmark = pytest.mark.django_db(transaction=True)

Begin = Callable[..., Rollout]
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
END = "UPDATE rollouts_rollout SET state = 'rolled_back', ended_at = now() WHERE id = %s"


@pytest.fixture
def elsewhere() -> Iterator[Any]:
    """A cursor of another process, which commits each statement unless it is told to begin."""
    other = connections.create_connection("default")
    with other.cursor() as cursor:
        yield cursor
    other.close()


@contextmanager
def just_before(words: str, act: Callable[[], object]) -> Iterator[None]:
    """Acts once, when this process has come to ask for what has these words in it, and before that is answered."""
    acts = iter([act])

    def wrapped(execute: Any, sql: str, *rest: Any) -> Any:
        if words in sql and (now := next(acts, None)):
            now()
        return execute(sql, *rest)

    with connection.execute_wrapper(wrapped):
        yield


def test_a_new_rollout_waits_for_a_tick_without_holding_what_the_tick_needs(
    acme: Tenant, adapter: Adapter, begin: Begin, elsewhere: Any
) -> None:
    first = begin(on_new=OnNew.RESTART)
    services.abort(first, actor=SYSTEM)
    made: list[Rollout] = []

    def create() -> None:
        made.append(services.create_rollout(adapter, Plan(version=2, override=True), actor=SYSTEM))
        connections.close_all()

    elsewhere.execute("BEGIN")
    elsewhere.execute(END, [first.pk])
    thread = threading.Thread(target=create)
    thread.start()
    try:
        wait_for(lambda: count(BLOCKED) == 1, 20, "the new one waiting for the row")
        elsewhere.execute("SELECT 1 FROM audit_chain WHERE id = %s FOR NO KEY UPDATE NOWAIT", [acme.pk])
    finally:
        elsewhere.execute("COMMIT")
        thread.join()
    assert [rollout.state for rollout in made] == [State.VALIDATING]


def test_a_tick_does_not_promote_what_it_has_not_locked_the_adapter_of(
    adapter: Adapter, begin: Begin, elsewhere: Any
) -> None:
    rollout = begin()
    promote = "UPDATE rollouts_rollout SET state = 'promoting', weight = 10000 WHERE id = %s"
    with just_before("SKIP LOCKED", lambda: elsewhere.execute(promote, [rollout.pk])):
        assert services.tick() == 0
    assert Alias.objects.get(adapter=adapter).version.number == 1
    assert services.tick() == 1
    assert Alias.objects.get(adapter=adapter).version.number == 2


def test_a_promotion_between_two_looks_sends_nobody_back(
    acme: Tenant, adapter: Adapter, begin: Begin, elsewhere: Any
) -> None:
    rollout = begin()
    services.promote(rollout, actor=SYSTEM)
    second = adapter.versions.get(number=2).pk

    def promoted() -> None:
        elsewhere.execute("BEGIN")
        elsewhere.execute("UPDATE registry_alias SET version_id = %s WHERE adapter_id = %s", [second, adapter.pk])
        elsewhere.execute("UPDATE rollouts_rollout SET state = 'succeeded', weight = 0 WHERE id = %s", [rollout.pk])
        elsewhere.execute("COMMIT")

    for words in ('FROM "registry_alias"', 'FROM "rollouts_rollout"'):
        with just_before(words, promoted):
            assert route(acme, "support", (), Units("key", "u")).target.version == 2


def count(sql: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return int(cursor.fetchone()[0])
