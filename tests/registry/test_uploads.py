"""Files that come in parts: in any order, cut off and gone on with, until a version takes them or their time is up."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from openai import BadRequestError, NotFoundError, OpenAI

from adapters.limits import DEFAULT
from audit.models import Event
from audit.services import SYSTEM
from audit.verification import verify
from registry import assembly
from registry.errors import UploadMalformed
from registry.intake import Upload, UploadState
from registry.models import BaseModel, State, Version
from registry.quarantine import Landing
from registry.services import (
    add_part,
    complete_upload,
    create_upload,
    expire_uploads,
    validate_version,
)
from tenants.models import Tenant
from tenants.services import create_tenant
from tests.processes import Platform, wait_for
from tests.registry.callers import Caller, Clients, Commits, LeftBehind, at_once, only
from tests.registry.test_upload import CONFIG, WEIGHTS, zipped


def test_parts_in_any_order_become_one_file_and_a_version(
    acme: Tenant, base: BaseModel, folder: Path, tmp_path: Path, caller: Caller, left_behind: LeftBehind
) -> None:
    content = zipped(folder, tmp_path / "a.zip").read_bytes()
    cut = len(content) // 3
    pieces = [content[:cut], content[cut : 2 * cut], content[2 * cut :]]
    upload = caller.create(len(content))
    assert (upload["status"], upload["object"], upload["received_bytes"]) == ("pending", "upload", 0)
    ids = {number: caller.part(upload["id"], pieces[number])["id"] for number in (2, 0, 1)}
    path = f"/v1/uploads/{upload['id']}"
    assert caller.get(path)["received_bytes"] == len(content)
    assert {part["id"] for part in caller.get(f"{path}/parts")["data"]} == set(ids.values())
    sha256 = hashlib.sha256(content).hexdigest()
    md5 = hashlib.md5(content).hexdigest()
    done = caller.complete(upload["id"], [ids[0], ids[1], ids[2]], md5=md5, sha256=sha256)
    assert (done["status"], done["file"]["bytes"], done["file"]["sha256"]) == ("completed", len(content), sha256)
    assert left_behind() == {f"quarantine/uploads/{only(done).pk}/whole"}
    files = {"files": [done["file"]["id"]]}
    version = caller.call("/api/v1/adapters/support/versions", files, 202)
    with caller.commits(execute=True):
        assert validate_version(version["id"]) == State.READY
    assert not any(name.startswith("quarantine") for name in left_behind())
    assert caller.get(f"/v1/files/{done['file']['id']}")["status"] == "processed"
    assert caller.call("/api/v1/adapters/support/versions", files, 400)["error"]["code"] == "upload_closed"
    actions = Event.objects.for_tenant(acme).filter(action__startswith="upload").order_by("number")
    assert [event.action for event in actions] == ["upload:created", "upload:completed"]
    assert verify() == []


def test_the_two_files_may_come_as_two_uploads(
    base: BaseModel, folder: Path, push: Callable[..., Version], globex: Tenant, caller: Caller
) -> None:
    direct = push(globex, "query")
    files = [caller.whole((folder / name).read_bytes(), name)["file"]["id"] for name in (CONFIG, WEIGHTS)]
    version = caller.call("/api/v1/adapters/support/versions", {"files": files}, 202)
    with caller.commits(execute=True):
        validate_version(version["id"])
    assert Version.objects.get(pk=version["id"]).digest == direct.digest


def test_who_was_cut_off_reads_what_arrived_and_goes_on(caller: Caller) -> None:
    upload = caller.create(9)
    first = caller.part(upload["id"], b"abc")
    again = caller.part(upload["id"], b"abc")  # the answer was lost, the client tried once more
    assert first["id"] == again["id"]
    (known,) = caller.get(f"/v1/uploads/{upload['id']}/parts")["data"]
    assert (known["bytes"], known["sha256"]) == (3, hashlib.sha256(b"abc").hexdigest())
    last = caller.part(upload["id"], b"def")
    order = [first["id"], last["id"], first["id"]]  # the same piece may stand in a file twice
    done = caller.complete(upload["id"], order)
    assert caller.complete(upload["id"], order) == done
    assert assembly.whole(only(done).pk).read_bytes() == b"abcdefabc"
    assert caller.complete(upload["id"], order[::-1][:2], 400)["error"]["code"] == "upload_closed"


def test_what_does_not_add_up_is_refused_and_can_be_put_right(caller: Caller) -> None:
    upload = caller.create(6)
    first, second = (caller.part(upload["id"], piece)["id"] for piece in (b"abc", b"def"))
    stray = f"part_{'0' * 32}"
    for parts, more, code in (
        ([first], {}, "parts_missing"),
        ([first, stray], {}, "parts_missing"),
        ([first, first, second], {}, "parts_missing"),
        ([second, first], {"md5": hashlib.md5(b"abcdef").hexdigest()}, "checksum_mismatch"),
        ([second, first], {"sha256": hashlib.sha256(b"abcdef").hexdigest()}, "checksum_mismatch"),
        ([], {}, "invalid_request"),
        (["x" * 100], {}, "invalid_request"),
        ([first, second], {"md5": "nonsense"}, "invalid_request"),
    ):
        assert caller.complete(upload["id"], parts, 400, **more)["error"]["code"] == code
    assert caller.part(upload["id"], b"g", 400)["error"]["code"] == "upload_overfull"
    assert caller.part(upload["id"], b"", 400)
    assert caller.complete(upload["id"], [first, second])["status"] == "completed"
    assert caller.part(upload["id"], b"more", 400)["error"]["code"] == "upload_closed"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": "many"}, "bytes"),
        ({"purpose": "vision"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"filename": "a\0b"}, "filename"),
        ({"filename": "x" * 256}, "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
        ({"tenant": "globex"}, "tenant"),
        ({"state": "completed"}, "state"),
    ],
)
def test_a_wrong_announcement_is_named(caller: Caller, change: dict[str, Any], param: str) -> None:
    about = {"bytes": 6, "filename": "a.zip", "purpose": "adapter", **change}
    assert caller.call("/v1/uploads", about, 400)["error"]["param"] == param
    assert not Upload.objects.exists()


def test_what_is_larger_than_an_adapter_may_be_is_refused_before_a_byte_came(caller: Caller) -> None:
    assert caller.create(DEFAULT.total + 1, status=413)["error"]["code"] == "upload_too_large"


def test_a_cancelled_upload_is_gone_and_takes_no_more(caller: Caller, left_behind: LeftBehind) -> None:
    upload = caller.create(6)
    part = caller.part(upload["id"], b"abc")["id"]
    for _ in range(2):
        assert caller.call(f"/v1/uploads/{upload['id']}/cancel")["status"] == "cancelled"
    assert left_behind() == set()
    assert caller.part(upload["id"], b"def", 400)["error"]["code"] == "upload_closed"
    assert caller.complete(upload["id"], [part], 400)["error"]["code"] == "upload_closed"
    done = caller.whole(b"abc")
    assert caller.call(f"/v1/uploads/{done['id']}/cancel", None, 400)["error"]["code"] == "upload_closed"


def test_what_nobody_completes_or_uses_in_time_is_swept(acme: Tenant, caller: Caller, left_behind: LeftBehind) -> None:
    late, idle, busy = caller.create(6), caller.whole(b"abc"), caller.create(6)
    part = caller.part(late["id"], b"abc")["id"]
    caller.part(busy["id"], b"abc")
    before = timezone.now() - timedelta(seconds=1)
    Upload.objects.filter(pk=only(late).pk).update(expires_at=before)
    Upload.objects.filter(pk=only(idle).pk).update(file_expires_at=before)
    assert caller.part(late["id"], b"def", 400)["error"]["code"] == "upload_closed"
    assert caller.complete(late["id"], [part], 400)["error"]["code"] == "upload_closed"
    with caller.commits(execute=True):
        assert expire_uploads() == 2
        assert expire_uploads() == 0
    assert caller.get(f"/v1/uploads/{late['id']}")["status"] == "expired"
    assert caller.get(f"/v1/uploads/{idle['id']}")["status"] == "completed"
    caller.get(f"/v1/files/{idle['file']['id']}", 404)
    assert len(left_behind()) == 1
    assert only(busy).state == UploadState.PENDING
    assert Event.objects.for_tenant(acme).filter(action="upload:expired").count() == 2


def test_a_stranger_meets_no_upload_and_no_file(caller: Caller, stranger: Caller) -> None:
    open_, done = caller.create(6), caller.whole(b"abc")
    part = caller.part(open_["id"], b"abc")["id"]
    answers = [
        stranger.get(f"/v1/uploads/{open_['id']}", 404),
        stranger.get(f"/v1/uploads/{open_['id']}/parts", 404),
        stranger.part(open_["id"], b"abc", 404),
        stranger.complete(open_["id"], [part], 404),
        stranger.call(f"/v1/uploads/{open_['id']}/cancel", None, 404),
        stranger.get(f"/v1/files/{done['file']['id']}", 404),
        stranger.get(f"/v1/files/{done['file']['id']}/content", 404),
        stranger.call(f"/v1/files/{done['file']['id']}", None, 404, method="delete"),
        stranger.call("/api/v1/adapters/x/versions", {"files": [done["file"]["id"]]}, 404),
        stranger.get("/v1/uploads/nothing", 404),
        stranger.get(f"/v1/uploads/upload_{'0' * 32}", 404),
    ]
    assert {answer["error"]["message"] for answer in answers} == {"There is no such upload or file here."}
    assert stranger.get("/v1/files")["data"] == []
    mine = stranger.create(3)
    assert stranger.complete(mine["id"], [part], 400)["error"]["code"] == "parts_missing"
    assert only(open_).state == UploadState.PENDING
    assert only(done).state == UploadState.COMPLETED


def test_a_key_confined_to_an_adapter_sees_what_it_sent_itself(
    acme: Tenant, caller: Caller, client_of: Clients, django_capture_on_commit_callbacks: Commits
) -> None:
    scopes = ("adapters:read", "adapters:write")
    confined = Caller(client_of(acme, *scopes, adapters=("query",)), django_capture_on_commit_callbacks)
    theirs, own = caller.whole(b"abc"), confined.whole(b"def")
    assert [file["id"] for file in confined.get("/v1/files")["data"]] == [own["file"]["id"]]
    confined.get(f"/v1/uploads/{theirs['id']}", 404)
    confined.get(f"/v1/files/{theirs['file']['id']}/content", 404)
    confined.call("/api/v1/adapters/query/versions", {"files": [theirs["file"]["id"]]}, 404)
    caller.get(f"/v1/files/{own['file']['id']}")


@pytest.mark.django_db(transaction=True)
def test_parts_that_come_at_once_all_arrive_and_the_file_is_made_once(home: Path) -> None:
    acme = create_tenant("acme", "Acme", actor=SYSTEM)
    upload = create_upload(acme, filename="a", purpose="adapter", bytes=24, actor=SYSTEM)
    outcomes: list[Any] = []

    def send(content: bytes) -> None:
        landing = Landing("part", None)
        landing.write(content)
        landing.flush()
        with suppress(UploadMalformed):
            outcomes.append(add_part(upload, landing).public_id)
        landing.close()
        connection.close()

    def complete() -> None:
        outcomes.append(complete_upload(upload, order, actor=SYSTEM).state)
        connection.close()

    contents = [*(bytes([letter]) * 4 for letter in b"abcdef"), b"12345678"]
    pieces = {hashlib.sha256(content).hexdigest(): content for content in contents}
    at_once([partial(send, piece) for piece in [*pieces.values(), *pieces.values()]])
    parts = list(upload.parts.order_by("sha256"))  # all of four bytes, or the one of eight in the place of two of them
    order = [part.public_id for part in parts]
    assert set(outcomes) == set(order)
    assert upload.received == 24
    outcomes.clear()
    at_once([complete] * 3)
    assert outcomes == [UploadState.COMPLETED] * 3
    assert assembly.whole(upload.pk).read_bytes() == b"".join(pieces[part.sha256] for part in parts)
    assert Event.objects.filter(action="upload:completed").count() == 1


def test_the_openai_package_uploads_in_parts_against_the_running_platform(
    platform: Platform, folder: Path, tmp_path: Path
) -> None:
    archive = zipped(folder, tmp_path / "a.zip")
    content = archive.read_bytes()
    (_, key), (_, strange) = platform.tenant("in-parts"), platform.tenant("stranger")
    client = OpenAI(base_url=f"{platform.url}/v1", api_key=key, max_retries=0)
    other = OpenAI(base_url=f"{platform.url}/v1", api_key=strange, max_retries=0)
    purpose: Any = "adapter"
    done = client.uploads.upload_file_chunked(
        file=archive, mime_type="application/zip", purpose=purpose, part_size=2000, md5=hashlib.md5(content).hexdigest()
    )
    assert done.status == "completed"
    assert done.file is not None
    assert client.files.content(done.file.id).read() == content
    assert [file.id for file in client.files.list()] == [done.file.id]
    body = {"files": [done.file.id]}
    version = platform.call("POST", "adapters/by-parts/versions", key, **body)
    path = f"adapters/by-parts/versions/{version['number']}"
    wait_for(lambda: platform.call("GET", path, key)["state"] == "ready", 60, "validation")
    with pytest.raises(NotFoundError):
        other.files.retrieve(done.file.id)
    again = client.uploads.create(bytes=10, filename="a.zip", mime_type="application/zip", purpose=purpose)
    with pytest.raises(NotFoundError):
        other.uploads.cancel(again.id)
    with pytest.raises(BadRequestError, match="10 bytes announced"):
        client.uploads.parts.create(again.id, data=b"x" * 11)
    assert client.uploads.cancel(again.id).status == "cancelled"
