"""What PostgreSQL shows a web process, by raw SQL over every table: the tenants in scope, and nobody when none is."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.core.checks import run_checks
from django.db import ProgrammingError, connection, models, transaction
from django.http import HttpResponse
from django.test import RequestFactory

from audit.models import Event
from registry.models import Adapter, Version
from tenants import policies
from tenants.isolation import across_every_tenant, begins_with_nobody, confine, in_scope, within
from tenants.models import Tenant
from tests.database import web_role
from tests.furnished import furnish, sealed

TABLES = sorted(each.table for each in policies.owned().values())


@pytest.fixture
def both(acme: Tenant, globex: Tenant, push: Callable[..., Version]) -> list[Tenant]:
    for tenant in (acme, globex):
        furnish(tenant, push)
    sealed(acme, globex)
    return [acme, globex]


@pytest.fixture
def web(both: list[Tenant]) -> Iterator[None]:
    with web_role():
        yield


def rows(table: str) -> set[Any]:
    with connection.cursor() as cursor:
        cursor.execute(f'SELECT t::text FROM "{table}" t')
        return {row[0] for row in cursor.fetchall()}


def test_every_model_is_a_tenants_or_named_as_shared() -> None:
    assert policies.unclaimed() == []
    assert not {message.id for message in run_checks()} & {"tenants.E001"}


def test_a_model_of_which_nobody_said_whose_it_is_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "SHARED", policies.SHARED - {"registry.blob"})
    assert [error.id for error in run_checks() if "registry.blob" in error.msg] == ["tenants.E001"]


def test_every_tenants_table_is_guarded_and_the_check_sees_one_that_is_not(db: None) -> None:
    deployed: dict[str, Any] = {"include_deployment_checks": True, "databases": ["default"], "tags": ["database"]}
    assert policies.unprotected() == []
    assert run_checks(**deployed) == []
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE registry_alias DISABLE ROW LEVEL SECURITY")
    assert [error.id for error in run_checks(**deployed)] == ["tenants.E002"]
    policies.install(settings.LORAYARD.web_role)
    assert policies.unprotected() == []


def test_the_role_can_neither_log_in_nor_look_past_policies(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = %s",
            [settings.LORAYARD.web_role],
        )
        assert cursor.fetchone() == (False,) * 5
        cursor.execute("SELECT count(*) FROM pg_tables WHERE tableowner = %s", [settings.LORAYARD.web_role])
        assert cursor.fetchone() == (0,)


@pytest.mark.usefixtures("both")
def test_each_table_shows_nobodys_rows_then_each_tenants_own_and_an_operator_all(both: list[Tenant]) -> None:
    for table in TABLES:
        everything = rows(table)
        with web_role():
            assert rows(table) == set(), table
            with within(both[0].pk):
                acmes = rows(table)
            with within(both[1].pk):
                globexs = rows(table)
            with within(*(tenant.pk for tenant in both)):
                assert rows(table) == acmes | globexs, table
            with across_every_tenant():
                assert rows(table) == everything, table
            with within(uuid.uuid4()):
                assert rows(table) == set(), table
        assert not acmes & globexs, table
        assert acmes | globexs <= everything, table
        assert acmes, f"{table}: nothing was tried; give every tenant a row of it in tests/furnished.py"
        assert globexs, f"{table}: nothing was tried; give every tenant a row of it in tests/furnished.py"


@pytest.mark.usefixtures("web")
def test_a_tenant_can_neither_change_delete_nor_make_a_strangers_rows(both: list[Tenant]) -> None:
    acme, globex = both
    with within(acme.pk):
        assert Tenant.objects.filter(pk=globex.pk).update(name="mine") == 0
        assert Adapter.objects.filter(tenant=globex).delete() == (0, {})
        base = Adapter.objects.get().base_model
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            Adapter.objects.create(tenant=globex, name="planted", base_model=base)
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            Adapter.objects.update(tenant=globex)
    with within(globex.pk):
        assert Adapter.objects.get().name == "support"


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize(
    "change", ["UPDATE audit_event SET action = ''", "DELETE FROM audit_event", "TRUNCATE audit_event"]
)
def test_the_web_has_no_right_to_change_what_was_recorded(change: str) -> None:
    with across_every_tenant(), connection.cursor() as cursor:
        with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
            cursor.execute(change)
        assert Event.objects.exists()


@pytest.mark.usefixtures("web")
def test_the_web_can_truncate_nothing_and_sign_no_checkpoint() -> None:
    tables = {model._meta.db_table for model in apps.get_models(include_auto_created=True)}
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute("SELECT has_table_privilege(%s, 'TRUNCATE')", [table])
            assert cursor.fetchone() == (False,), table
        for table in ("audit_checkpoint", "audit_leaf", "audit_segment", "django_migrations"):
            cursor.execute("SELECT has_table_privilege(%s, 'INSERT, UPDATE, DELETE')", [table])
            assert cursor.fetchone() == (False,), table


@pytest.mark.usefixtures("web")
def test_a_scope_that_a_rollback_took_from_the_connection_is_told_again(both: list[Tenant]) -> None:
    acme, globex = both
    with within(acme.pk):
        assert Adapter.objects.get().tenant_id == acme.pk
    assert not Adapter.objects.exists()
    with transaction.atomic():
        with within(globex.pk):
            assert Adapter.objects.get().tenant_id == globex.pk
        transaction.set_rollback(True)
    assert not Adapter.objects.exists()
    with within(globex.pk):
        assert Adapter.objects.get().tenant_id == globex.pk


def test_a_request_begins_with_nobody_and_leaves_no_scope_behind() -> None:
    seen = []

    def answer(_: Any) -> HttpResponse:
        seen.append(in_scope())
        confine(uuid.UUID(int=1))
        seen.append(in_scope())
        return HttpResponse()

    with within(uuid.UUID(int=2)):
        begins_with_nobody(answer)(RequestFactory().get("/"))
        assert (seen, in_scope()) == (["", str(uuid.UUID(int=1))], str(uuid.UUID(int=2)))


def test_a_scope_is_ids_and_nothing_else() -> None:
    for nonsense in ("*", "", "a,b", "' OR true"):
        with pytest.raises(ValueError, match="UUID"):
            confine(nonsense)  # type: ignore[arg-type]


def test_no_tenants_model_is_read_through_a_key_that_may_be_missing() -> None:
    for each in policies.owned().values():
        field = next(field for field in each.model._meta.concrete_fields if field.column == each.column)
        assert each.parent is None or (isinstance(field, models.ForeignKey) and not field.null), each.table
