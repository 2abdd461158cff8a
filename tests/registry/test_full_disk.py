"""Uploads and sets while a disk is full: 507, nothing left, and all as before once there is room."""

import base64
import io
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from evaluations.models import EvaluationSet
from registry import quarantine
from registry.intake import Part, Upload
from registry.models import BaseModel, State, Version
from registry.services import validate_version
from registry.services.validation import ATTEMPTS
from tenants.models import Tenant
from tests.disks import fill, small_disk
from tests.registry.callers import Caller

Clients = Callable[..., APIClient]
Commits = Callable[..., AbstractContextManager[Any]]
Post = Callable[..., Any]
Push = Callable[..., Version]
LeftBehind = Callable[[], set[str]]

SET = b'{"messages": [{"role": "user", "content": "%s"}], "scorer": "exact", "expected": "hello"}\n'


@pytest.fixture
def small(home: Path) -> Iterator[Path]:
    """A quarantine of 3 MiB."""
    with small_disk(home / "quarantine", 3072) as folder:
        yield folder


def is_507(answer: Any) -> bool:
    told = answer.json()["error"]
    return (answer.status_code, told["code"], "Retry-After" in answer.headers) == (507, "storage_full", True)


def lying(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"ballast"}


def test_an_upload_is_507_and_leaves_nothing_until_there_is_room(
    base: BaseModel, acme: Tenant, client_of: Clients, post: Post, peft_folders: list[Path], small: Path
) -> None:
    client, files = client_of(acme), sorted(peft_folders[0].iterdir())
    (small / "incoming").mkdir()
    ballast = fill(small)
    answer = post(client, "support", *files)
    assert is_507(answer)
    assert "disk is full" in answer.json()["error"]["message"]
    assert lying(small) == set()
    assert not Version.objects.exists()
    ballast.unlink()
    assert post(client, "support", *files).status_code == 202


def test_parts_and_files_are_507_and_can_be_sent_again(caller: Caller, small: Path) -> None:
    upload = caller.create(1 << 20)
    (small / "incoming").mkdir(exist_ok=True)
    ballast = fill(small)
    caller.part(upload["id"], bytes(1 << 20), status=507)
    form = {"purpose": "adapter", "file": io.BytesIO(bytes(1 << 20))}
    caller.call("/v1/files", form, 507, format="multipart")
    assert lying(small) == set()
    assert (Part.objects.count(), Upload.objects.count()) == (0, 1)
    ballast.unlink()
    part = caller.part(upload["id"], bytes(1 << 20))
    os.truncate(fill(small), 0)
    (small / "ballast").write_bytes(bytes((1 << 20) + (1 << 19)))
    caller.complete(upload["id"], [part["id"]], status=507)
    (small / "ballast").unlink()
    assert lying(small) == {f"uploads/{Upload.objects.get().pk}/{Part.objects.get().pk}"}
    assert caller.complete(upload["id"], [part["id"]])["status"] == "completed"


def test_a_version_whose_validation_finds_no_room_waits_and_is_not_rejected(
    push: Push, acme: Tenant, home: Path, django_capture_on_commit_callbacks: Commits
) -> None:
    version = push(acme, "support", validate=False)
    with small_disk(home / "store") as store:
        ballast = fill(store)
        for _ in range(ATTEMPTS + 1):
            with pytest.raises(OSError, match="space"):
                validate_version(version.pk)
        version.refresh_from_db()
        assert (version.state, version.attempts) == (State.VALIDATING, 0)
        ballast.unlink()
        with django_capture_on_commit_callbacks(execute=True):
            assert validate_version(version.pk) == State.READY


def test_a_set_that_finds_no_room_before_it_is_read_is_507(acme: Tenant, client_of: Clients, small: Path) -> None:
    (small / "incoming").mkdir()
    fill(small)
    form = {"name": "greetings", "file": io.BytesIO(SET % b"x" * 30_000)}
    assert is_507(client_of(acme).post("/api/v1/evaluation-sets", form, format="multipart"))
    assert lying(small) == set()
    assert not EvaluationSet.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_set_that_the_databases_disk_has_no_room_for_is_507_and_leaves_nothing(
    acme: Tenant, client_of: Clients, home: Path
) -> None:
    rows = SET % base64.b64encode(os.urandom(3000)) * 500  # what does not shrink
    with connection.cursor() as cursor:
        cursor.execute("SHOW data_directory")
        data = Path(cursor.fetchone()[0])
    with small_disk(data.parent / "tablespace", 512) as folder:
        os.chown(folder, data.stat().st_uid, data.stat().st_gid)
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
            cursor.execute("ALTER TABLE evaluations_item SET TABLESPACE small")
        try:
            form = {"name": "greetings", "file": io.BytesIO(rows)}
            assert is_507(client_of(acme).post("/api/v1/evaluation-sets", form, format="multipart"))
            assert not EvaluationSet.objects.exists()
        finally:
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE evaluations_item SET TABLESPACE pg_default")
                cursor.execute("DROP TABLESPACE small")
    form = {"name": "greetings", "file": io.BytesIO(rows)}
    assert client_of(acme).post("/api/v1/evaluation-sets", form, format="multipart").status_code == 201


FORM = "multipart/form-data; boundary=x"
FILE = b'--x\r\nContent-Disposition: form-data; name="f%d"; filename="a%d"\r\n\r\n' + bytes(1 << 20) + b"\r\n"
FIELD = b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n'
BROKEN = b'--x\r\nContent-Disposition: form-data; name="b"; filename="b"\r\n'
BROKEN += b"Content-Transfer-Encoding: base64\r\n\r\n!!!!!\r\n"
REFUSED = {
    "too many files": b"".join(FILE % (number, number) for number in range(10)) + b"--x--\r\n",
    "too many fields": FILE % (0, 0) + b"".join(FIELD % number for number in range(1002)) + b"--x--\r\n",
    "a field that is unknown": FILE % (0, 0) + FIELD % 1 + b"--x--\r\n",
    "a file that is no base64": FILE % (0, 0) + BROKEN + b"--x--\r\n",
    "the same name twice": FILE % (0, 0) + FILE % (1, 0) + b"--x--\r\n",
}


@pytest.mark.parametrize("title", REFUSED)
@pytest.mark.parametrize("path", ["/api/v1/adapters/support/versions", "/v1/files", "/v1/uploads/{}/parts"])
def test_a_refused_form_leaves_no_file(
    title: str, path: str, base: BaseModel, caller: Caller, home: Path, left_behind: LeftBehind
) -> None:
    upload = caller.create(1 << 20)["id"]
    client: Any = caller.client
    answer = client.generic("POST", path.format(upload), REFUSED[title], content_type=FORM)
    assert 400 <= answer.status_code < 500
    assert left_behind() == set()


def test_what_a_killed_process_was_reading_is_swept_and_what_a_live_one_reads_is_not(home: Path) -> None:
    alive = quarantine.Landing("alive", None)
    dead = alive.path.with_name("dead")
    dead.write_bytes(b"half")
    assert quarantine.sweep_incoming() == 0, "it may have been made this moment"
    assert quarantine.sweep_incoming(older_than=-1) == 1
    assert alive.path.is_file()
    assert not dead.exists()
    alive.close()
    assert not alive.path.exists()
