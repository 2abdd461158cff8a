"""A tenant's endpoints are told of what really becomes of its versions and aliases, and nobody else's are."""

from collections.abc import Callable
from pathlib import Path

from audit.services import SYSTEM
from registry.models import Version
from registry.services import archive_version, delete_alias, delete_version, move_alias
from tenants.models import Tenant
from tests.webhooks.told import listen


def test_each_turn_of_a_versions_life_is_told(
    acme: Tenant, globex: Tenant, push: Callable[..., Version], folder: Path
) -> None:
    told = listen(acme, globex)
    first = push(acme, "support", 0)
    (folder / "adapter_config.json").write_text("{}")
    push(acme, "support", folder)
    third = push(acme, "support", 1)
    alias = move_alias(first.adapter, "canary", 1, expected=None, actor=SYSTEM)
    delete_alias(alias, actor=SYSTEM)
    archive_version(third, actor=SYSTEM)
    delete_version(third, actor=SYSTEM)
    assert sorted(told(acme)) == sorted(
        [
            *["version.ready", "version.rejected", "version.ready", "version.archived", "version.deleted"],
            *["alias.moved", "alias.moved", "alias.deleted"],
        ]
    )
    assert told(globex) == []
