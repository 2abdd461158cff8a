"""A home of the test's own, and somebody who owns the database and can switch triggers off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from audit.models import Action
from audit.services import SYSTEM, record
from audit.verification import verify
from config.env import Env
from tenants.models import Tenant

Sql = Callable[..., None]


@pytest.fixture(autouse=True)
def home(settings: Any, tmp_path: Path) -> Path:
    """LORAYARD_HOME, with the signing key and the store in it."""
    env: Env = settings.LORAYARD
    home = tmp_path / "home"
    settings.LORAYARD = env.model_copy(update={"home": home, "audit_store_url": f"file://{home}/audit"})
    return home


@pytest.fixture
def sql(db: None) -> Sql:
    """Runs SQL as the owner, triggers off."""

    def run(statement: str, *parameters: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute(statement, parameters)
            cursor.execute("SET LOCAL session_replication_role = origin")

    return run


def write(tenant: Tenant | None, count: int) -> None:
    for number in range(count):
        with transaction.atomic():
            record(Action.KEY_ISSUED, tenant=tenant, actor=SYSTEM, target=f"key:{number}", data={"n": number, "f": 1.5})


def kinds(tenant: Tenant | None = None) -> list[str]:
    return [problem.kind for problem in verify(tenant)]
