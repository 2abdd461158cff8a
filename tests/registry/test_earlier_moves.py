"""Aliases that are older than the table of their moves have a whole history, and a way back."""

from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from django.db import connection, models, transaction
from django.db.migrations.state import ProjectState
from django.db.models import F

from audit.models import Event
from audit.services import SYSTEM
from registry.models import Adapter, Alias, AliasMove, Version
from registry.services import delete_alias, move_alias, rollback_alias
from tenants.models import Tenant

Push = Callable[..., Version]
Known = list[tuple[str, int | None, int | None, str]]

WHOLE: Known = [
    ("created", None, 1, "system:lorayard"),
    ("moved", 1, 2, "system:lorayard"),
    ("moved", 2, 1, "system:lorayard"),
]


@pytest.fixture
def adapter(acme: Tenant, push: Push) -> Adapter:
    """Its `stable` went from v1 to v2 and back; nothing is yet forgotten."""
    [_, version] = [push(acme, "support", which) for which in (0, 1)]
    for expected, number in ((1, 2), (2, 1)):
        move_alias(version.adapter, "stable", number, expected=expected, actor=SYSTEM)
    return version.adapter


def migrate() -> None:
    """What the migration does, to the database as it is."""
    [operation] = import_module("registry.migrations.0006_earlier_alias_moves").Migration.operations
    with connection.schema_editor() as editor:
        operation.database_forwards("registry", editor, ProjectState(), ProjectState())


def forget(rows: models.QuerySet[Event]) -> None:
    """As sealing does: only the owner can, past the triggers."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        rows.delete()
        cursor.execute("SET LOCAL session_replication_role = origin")


def history(adapter: Adapter, alias: str = "stable") -> Known:
    numbers: dict[Any, int | None] = {None: None, **dict(adapter.versions.values_list("pk", "number"))}
    moves = adapter.alias_moves.filter(alias=alias).reverse()
    return [(move.kind, numbers[move.from_version_id], numbers[move.to_version_id], move.actor) for move in moves]


def test_the_history_is_taken_from_the_audit_chain_and_leads_back(adapter: Adapter, globex: Tenant, push: Push) -> None:
    strangers = push(globex, "support").adapter
    times = list(Event.objects.filter(target="acme/support@stable").order_by("id").values_list("created_at", flat=True))
    AliasMove.objects.all().delete()
    migrate()
    assert history(adapter) == WHOLE
    assert list(adapter.alias_moves.reverse().values_list("at", flat=True)) == times
    assert history(strangers) == WHOLE[:1]
    assert rollback_alias(adapter, "stable", expected=1, actor=SYSTEM).version.number == 2
    assert [kind for kind, *_ in history(adapter)] == ["created", "moved", "moved", "rolled_back"]


def test_what_was_kept_since_comes_after_it_and_nothing_is_told_twice(adapter: Adapter) -> None:
    first = adapter.alias_moves.earliest("id")
    AliasMove.objects.filter(pk=first.pk).delete()
    migrate()
    assert history(adapter) == WHOLE
    kept = list(adapter.alias_moves.values_list("pk", flat=True))
    migrate()
    assert list(adapter.alias_moves.values_list("pk", flat=True)) == kept


def test_where_the_chain_is_sealed_the_history_begins_with_what_is_known(acme: Tenant, adapter: Adapter) -> None:
    alias = Event.objects.filter(target="acme/support@stable").order_by("id")
    AliasMove.objects.all().delete()
    forget(Event.objects.filter(pk__in=list(alias.values_list("pk", flat=True)[:2])))
    migrate()
    assert history(adapter) == [("created", None, 2, "system:lorayard"), WHOLE[2]]
    AliasMove.objects.all().delete()
    forget(Event.objects.filter(pk__in=alias))
    migrate()
    assert history(adapter) == [("created", None, 1, "system:lorayard")]
    assert adapter.alias_moves.get().at == Alias.objects.get().moved_at


def test_an_alias_that_is_gone_has_its_history_but_not_that_of_an_adapter_before(adapter: Adapter) -> None:
    move_alias(adapter, "next", 2, expected=None, actor=SYSTEM)
    delete_alias(adapter.aliases.get(name="next"), actor=SYSTEM)
    AliasMove.objects.all().delete()
    migrate()
    assert [move[:3] for move in history(adapter, "next")] == [("created", None, 2), ("deleted", 2, None)]
    AliasMove.objects.all().delete()
    Adapter.objects.update(created_at=F("created_at") + timedelta(days=1))
    migrate()
    assert history(adapter, "next") == []
    assert [move[:3] for move in history(adapter)] == [("created", None, 1)]
