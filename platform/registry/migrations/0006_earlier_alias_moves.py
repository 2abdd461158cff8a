"""Tells of aliases' moves from before AliasMove kept them, so that histories are whole and rollbacks find their way.

The audit chain remembers each such move. Where it no longer does (old events are sealed into the artifact store), the
history begins with where the alias was when it is next heard of. All of these rows have ids below zero, in their order:
histories are ordered by id, and what was kept since comes after them.
"""

from django.db import migrations

FROM_EVENTS = """
WITH told AS (
    SELECT id, tenant_id, created_at, data, actor_kind || ':' || actor_id AS actor, split_part(action, ':', 3) AS kind,
        split_part(split_part(target, '/', 2), '@', 1) AS adapter, split_part(target, '@', 2) AS alias
    FROM audit_event
    WHERE action IN ('adapter:alias:created', 'adapter:alias:moved', 'adapter:alias:deleted')
), missing AS (
    SELECT told.*, adapter.id AS adapter_id, origin.id AS origin_id, aim.id AS aim_id
    FROM told
    JOIN registry_adapter adapter ON adapter.tenant_id = told.tenant_id AND adapter.name = told.adapter
        AND adapter.created_at <= told.created_at  -- else it was another adapter of that name, gone since
    LEFT JOIN registry_version origin ON origin.adapter_id = adapter.id AND origin.number::text = told.data ->> 'from'
    LEFT JOIN registry_version aim ON aim.adapter_id = adapter.id AND aim.number::text = told.data ->> 'to'
    WHERE (origin.id IS NOT NULL OR aim.id IS NOT NULL) AND NOT EXISTS (
        SELECT FROM registry_aliasmove kept
        WHERE kept.adapter_id = adapter.id AND kept.alias = told.alias AND kept.at <= told.created_at
    )
)
INSERT INTO registry_aliasmove (id, adapter_id, alias, kind, from_version_id, to_version_id, actor, reason, at)
SELECT -row_number() OVER (ORDER BY id DESC), adapter_id, alias, kind, origin_id, aim_id, actor, '', created_at
FROM missing
"""

BEGINNINGS = """
WITH beginning AS (
    SELECT alias.adapter_id, alias.name AS alias, alias.version_id, alias.moved_at AS at
    FROM registry_alias alias
    WHERE NOT EXISTS (
        SELECT FROM registry_aliasmove kept WHERE kept.adapter_id = alias.adapter_id AND kept.alias = alias.name
    )
    UNION ALL
    SELECT adapter_id, alias, from_version_id, at FROM (
        SELECT DISTINCT ON (adapter_id, alias) * FROM registry_aliasmove ORDER BY adapter_id, alias, id
    ) first
    WHERE from_version_id IS NOT NULL
)
INSERT INTO registry_aliasmove (id, adapter_id, alias, kind, from_version_id, to_version_id, actor, reason, at)
SELECT (SELECT least(0, min(id)) FROM registry_aliasmove) - row_number() OVER (ORDER BY at DESC), adapter_id, alias,
    'created', NULL, version_id, 'system:lorayard', 'Who made the alias, and when, is not known any more.', at
FROM beginning
"""


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0005_events_move_their_chain"),
        ("registry", "0005_aliases_versions"),
    ]

    operations = [migrations.RunSQL([FROM_EVENTS, BEGINNINGS], "DELETE FROM registry_aliasmove WHERE id < 0")]
