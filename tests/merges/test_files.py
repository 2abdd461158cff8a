"""The files of merged models: downloaded whole and in ranges, until they expire, are deleted or swept."""

from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from audit.models import Event
from merges.models import Merge
from merges.services import expire_merges, tidy_merges
from registry.models import Version
from tenants.models import Tenant
from tests.merges.asking import INTO_BASE, Clients, Files, Run, ask, show


def body_of(answer: Any) -> bytes:
    return b"".join(answer.streaming_content if not answer.is_async else answer)


def test_files_are_downloaded_whole_and_in_ranges_until_they_expire(
    two: list[Version],
    acme: Tenant,
    client_of: Clients,
    home: Path,
    files_of: Files,
    django_capture_on_commit_callbacks: Any,
    run: Run,
) -> None:
    client = client_of(acme)
    told = ask(client, INTO_BASE)
    run(told)
    (file,) = (file for file in show(client, told)["files"] if file["name"] == "tokenizer.json")
    content = (home / "merges" / told["id"] / "result" / "tokenizer.json").read_bytes()
    whole = client.get(file["url"])
    assert (whole.status_code, whole.headers["Content-Length"]) == (200, str(file["size"]))
    assert (whole.headers["Accept-Ranges"], whole.headers["ETag"]) == ("bytes", f'"{file["sha256"]}"')
    assert body_of(whole) == content
    size = len(content)
    etag = whole.headers["ETag"]
    for asked_for, only_if, status, part in (
        ("bytes=0-9", "", 206, content[:10]),
        ("bytes=10-", "", 206, content[10:]),
        ("bytes=-7", etag, 206, content[-7:]),
        (f"bytes=5-{size + 100}", "", 206, content[5:]),
        ("bytes=5-9", '"another"', 200, content),
        ("bytes=0-1,4-5", "", 200, content),
        ("lines=1-2", "", 200, content),
    ):
        answer = client.get(file["url"], headers={"Range": asked_for} | ({"If-Range": only_if} if only_if else {}))
        assert (answer.status_code, body_of(answer)) == (status, part), asked_for
    assert client.get(file["url"], headers={"Range": "bytes=0-9"}).headers["Content-Range"] == f"bytes 0-9/{size}"
    beyond = client.get(file["url"], headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    for name in ("../result.plan", "other.json", "..", "%2e%2e%2fsources"):
        assert client.get(f"/api/v1/merges/{told['id']}/files/{name}").status_code == 404
    assert Event.objects.filter(action="merge:downloaded").count() == 6  # each start at the first byte
    head = client.head(file["url"])
    assert (head.headers["Content-Length"], head.content) == (str(size), b"")
    Merge.objects.update(expires_at="2020-01-01T00:00:00Z")
    assert client.get(file["url"]).status_code == 404
    with django_capture_on_commit_callbacks(execute=True):
        assert expire_merges() == 1
    assert files_of() == set()
    assert (show(client, told)["state"], show(client, told)["files"]) == ("expired", [])
    assert client.delete(f"/api/v1/merges/{told['id']}").status_code == 409


@pytest.mark.django_db(transaction=True)
def test_a_client_that_reads_holds_no_connection_to_the_database(
    two: list[Version], acme: Tenant, client_of: Clients, run: Run
) -> None:
    client = client_of(acme)
    told = ask(client, INTO_BASE)
    run(told)
    answer = client.get(show(client, told)["files"][0]["url"])
    assert answer.status_code == 200
    assert connection.connection is None
    assert body_of(answer)
    assert Event.objects.filter(action="merge:downloaded").count() == 1


def test_a_merged_model_can_be_deleted_before_its_time(
    two: list[Version],
    acme: Tenant,
    client_of: Clients,
    files_of: Files,
    django_capture_on_commit_callbacks: Any,
    run: Run,
) -> None:
    client = client_of(acme)
    told = ask(client, INTO_BASE)
    run(told)
    with django_capture_on_commit_callbacks(execute=True):
        assert client.delete(f"/api/v1/merges/{told['id']}").status_code == 204
    assert files_of() == set()


def test_what_no_merge_knows_of_is_swept_away(
    two: list[Version], acme: Tenant, client_of: Clients, home: Path, files_of: Files, run: Run
) -> None:
    told = ask(client_of(acme), INTO_BASE)
    run(told)
    before = files_of()
    (home / "merges" / "00000000-0000-0000-0000-000000000000").mkdir()
    assert tidy_merges() == 1
    assert files_of() == before
