"""Derives from the models what the web role may do, and brings the database to it. Nothing here is written per model.

A model is a tenant's if it is Tenant, refers to Tenant, or refers to a tenant's model and can't do without. Each such
table has row-level security and one policy: a row is seen, and may be written, if its tenant is in scope
(`tenants.isolation`); a row that belongs to another row is seen when that one is. What is nobody's is named in SHARED.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import connection, models, transaction
from psycopg import sql

from tenants.isolation import EVERY, SETTING

POLICY = "tenants_in_scope"
SHARED = {"registry.basemodel", "registry.blob", "audit.checkpoint", "jobs.tick"}  # shapes, digests, signatures, times
KEYED_BY_TENANT = {"tenants.tenant", "audit.chain"}  # their id is a tenant's
RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
LESSER_RIGHTS = {
    "audit.event": "SELECT, INSERT",
    "audit.chain": "SELECT, INSERT, UPDATE",
    "audit.checkpoint": "SELECT",
    "audit.leaf": "SELECT",
    "audit.segment": "SELECT",
    "jobs.tick": "SELECT",
}

DIRECT = f"""(SELECT current_setting('{SETTING}', true) = '{EVERY}') OR {{column}}::text = ANY (
    (SELECT string_to_array(current_setting('{SETTING}', true), ','))::text[])"""
THROUGH = "EXISTS (SELECT FROM {parent} owner WHERE owner.{key} = {table}.{column})"

MAKE_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name}) THEN
        CREATE ROLE {role} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE;
    END IF;
    IF NOT pg_has_role(current_user, {name}, 'MEMBER') THEN
        GRANT {role} TO CURRENT_USER;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- another database's migration was quicker
END $$"""


class RoleUnsafe(Exception):
    """The web role could look past the policies."""


@dataclass(frozen=True)
class Owned:
    """A tenant's table, and how its rows lead to the tenant."""

    model: type[models.Model]
    column: str
    parent: type[models.Model] | None = None

    @property
    def table(self) -> str:
        return self.model._meta.db_table

    @property
    def condition(self) -> str:
        column = _quoted(self.column)
        if self.parent is None:
            return DIRECT.format(column=column)
        names = {"parent": self.parent._meta.db_table, "key": _key(self.parent), "table": self.table}
        return THROUGH.format(column=column, **{name: _quoted(value) for name, value in names.items()})


def owned() -> dict[str, Owned]:
    """Every tenant's model, by its label, those first that others lead through."""
    found: dict[str, Owned] = {}
    while new := {
        _label(model): way for model in _ours() if _label(model) not in found and (way := _way(model, found))
    }:
        found |= new
    return found


def unclaimed() -> list[str]:
    """Models of ours that are neither a tenant's nor named as shared: of these nobody knows who may see them."""
    claimed = owned().keys() | SHARED
    return sorted(_label(model) for model in _ours() if _label(model) not in claimed)


def unprotected() -> list[str]:
    """Tenants' tables that the database does not guard as derived here."""
    guarded = _guarded()
    return sorted(each.table for each in owned().values() if guarded.get(each.table) != _mark(each))


@transaction.atomic
def install(role: str) -> None:
    """Make the role, its rights and the policies what they should be. Repeatable; a guarded table is left in peace.

    Raises RoleUnsafe, and ProgrammingError where the role is missing and may not be made.
    """
    _make(role)
    guarded, tables = _guarded(), set(connection.introspection.table_names())
    with connection.cursor() as cursor:
        for table in sorted(tables):
            _execute(cursor, "REVOKE ALL ON {table} FROM {role}", table=table, role=role)
            _execute(cursor, f"GRANT {_rights().get(table, 'SELECT')} ON {{table}} TO {{role}}", table=table, role=role)
        _execute(cursor, "GRANT USAGE ON SCHEMA public TO {role}", role=role)
        _execute(cursor, "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}", role=role)
        for each in owned().values():
            if each.table in tables and guarded.get(each.table) != _mark(each):
                _guard(cursor, each)


def _make(role: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(MAKE_ROLE).format(name=sql.Literal(role), role=sql.Identifier(role)))
        cursor.execute("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = %s", [role])
        if cursor.fetchone()[0]:
            raise RoleUnsafe(f"The role {role} is a superuser's or bypasses row-level security.")


def _guard(cursor: Any, each: Owned) -> None:
    """The policy holds for every role but the owner; its comment says what it was made from."""
    names = {"table": each.table, "policy": POLICY}
    _execute(cursor, "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", **names)
    _execute(cursor, "DROP POLICY IF EXISTS {policy} ON {table}", **names)
    _execute(cursor, f"CREATE POLICY {{policy}} ON {{table}} USING ({each.condition})", **names)
    _execute(cursor, f"COMMENT ON POLICY {{policy}} ON {{table}} IS '{_mark(each)}'", **names)


def _guarded() -> dict[str, str]:
    """By table, what the policy of ours was made from, where row-level security is on."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, obj_description(p.oid, 'pg_policy')"
            " FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid"
            " WHERE c.relrowsecurity AND p.polname = %s AND c.relnamespace = 'public'::regnamespace",
            [POLICY],
        )
        return dict(cursor.fetchall())


def _way(model: type[models.Model], found: dict[str, Owned]) -> Owned | None:
    if _label(model) in KEYED_BY_TENANT:
        return Owned(model, _key(model))
    references = [field for field in model._meta.concrete_fields if isinstance(field, models.ForeignKey)]
    for field in references:
        if _label(field.related_model) == "tenants.tenant":
            return Owned(model, field.column)
    for field in references:
        if not field.null and _label(field.related_model) in found:
            return Owned(model, field.column, field.related_model)
    return None


def _ours() -> list[type[models.Model]]:
    everything = [apps.get_app_config(name).get_models(include_auto_created=True) for name in settings.OUR_APPS]
    return [model for some in everything for model in some if model._meta.managed and not model._meta.proxy]


def _rights() -> dict[str, str]:
    everything = apps.get_models(include_auto_created=True)
    return {model._meta.db_table: LESSER_RIGHTS.get(_label(model), RIGHTS) for model in everything}


def _mark(each: Owned) -> str:
    return hashlib.sha256(each.condition.encode()).hexdigest()


def _label(model: Any) -> str:
    return str(model._meta.label_lower)


def _key(model: type[models.Model]) -> str:
    return str(model._meta.pk.column)


def _quoted(name: str) -> str:
    return connection.ops.quote_name(name)


def _execute(cursor: Any, statement: str, **names: str) -> None:
    composed = sql.SQL(statement).format(**{name: sql.Identifier(value) for name, value in names.items()})
    cursor.execute(composed)
