"""A dump, restored into a cluster that has never heard of us: all is as it was, after `migrate`."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest
from django.db import connection
from psycopg import sql

from apikeys.services import issue
from audit.services import SYSTEM
from config import env, processes
from config.services import Postgres
from config.stack import Stack
from tenants.models import Tenant
from tests.conftest import FAST, Services
from tests.processes import free_port, manage, wait_for

SCOPES = ["keys:read", "keys:write"]
ROLE = env.load().web_role


@contextmanager
def fresh_cluster(folder: Path, sockets: Path) -> Iterator[Postgres]:
    """A new server, with nobody's roles and databases in it."""
    folder.mkdir()
    postgres = Postgres(folder / "postgres", sockets, FAST)
    postgres.prepare()
    with (folder / "postgres.log").open("wb") as log:
        process = postgres.command().popen(stdout=log, stderr=log)
    try:
        wait_for(postgres.ready, 60, "the new cluster becoming ready")
        postgres.ensure_database("lorayard")
        yield postgres
    finally:
        processes.end(process, postgres.command().stop, 10)


@contextmanager
def web(told: Mapping[str, str]) -> Iterator[str]:
    """The address of a web process alone, which is the web role's as everywhere."""
    port = free_port()
    ours = env.load().model_copy(update={"port": port, "database_url": told["DATABASE_URL"]})
    command = replace(Stack(ours).web, env={**Stack(ours).web.env, **told})
    log = Path(told["LORAYARD_HOME"]) / "web.log"
    with log.open("wb") as out:
        process = command.popen(stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or _lives(url), 60, "the web answering")
        assert process.poll() is None, log.read_text()[-2000:]
        yield url
    finally:
        processes.end(process, command.stop, 10)


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def done(told: Mapping[str, str], *arguments: str) -> str:
    ran = manage(told, *arguments, seconds=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip()


def run(*argv: str) -> None:
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.django_db(transaction=True)
def test_a_dump_restored_elsewhere_serves_after_migrate(
    services: Services, acme: Tenant, globex: Tenant, tmp_path: Path
) -> None:
    """As docs/operations.md has it, by the embedded PostgreSQL's own programs."""
    keys = [issue(tenant, name=tenant.slug, scopes=SCOPES, actor=SYSTEM)[1] for tenant in (acme, globex)]
    binaries, dump = services.postgres.binaries, str(tmp_path / "lorayard.dump")
    database = services.database(str(connection.settings_dict["NAME"]))
    run(str(binaries / "pg_dump"), "-Fc", "--no-owner", "--no-privileges", "-f", dump, database)

    with fresh_cluster(env.load().home / "restored", env.load().run / "restored") as postgres:
        url = f"postgresql://lorayard@/lorayard?host={postgres.sockets}"
        told = {"LORAYARD_HOME": str(env.load().home), "DATABASE_URL": url, "REDIS_URL": services.redis(2)}
        run(str(binaries / "pg_restore"), "--no-owner", "--no-privileges", "--exit-on-error", "-d", url, dump)
        with psycopg.connect(url) as restored:
            roles = "SELECT count(*) FROM pg_roles WHERE rolname = %s"
            assert restored.execute(roles, [ROLE]).fetchone() == (0,), "the role is the cluster's, not the dump's"
        done(told, "migrate")
        with psycopg.connect(url) as restored:
            may = "SELECT has_table_privilege(%s, 'audit_event', %s)"
            assert restored.execute(may, [ROLE, "INSERT"]).fetchone() == (True,)
            assert restored.execute(may, [ROLE, "DELETE"]).fetchone() == (False,)
            restored.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(ROLE)))
            assert restored.execute("SELECT count(*) FROM apikeys_apikey").fetchone() == (0,), "nobody is in scope"
        with web(told) as address:
            for slug, key in zip(("acme", "globex"), keys, strict=True):
                bearer = {"Authorization": f"Bearer {key}"}
                shown = httpx.get(f"{address}/api/v1/keys", headers=bearer, timeout=60).json()
                assert [row["name"] for row in shown["results"]] == [slug]
            made = {"name": "new", "scopes": ["keys:read"]}
            assert httpx.post(f"{address}/api/v1/keys", headers=bearer, json=made, timeout=60).status_code == 201
        done(told, "verify_audit")
