"""Uploaded files: listed, read, deleted, and sent in one piece."""

from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.db import connection

from tests.registry.callers import Caller, LeftBehind


def test_files_are_listed_read_and_deleted(caller: Caller, left_behind: LeftBehind) -> None:
    ids = [caller.whole(content, "a.jsonl")["file"]["id"] for content in (b"a", b"b", b"c")]
    page = caller.get("/v1/files?limit=2&order=asc")
    assert ([row["id"] for row in page["data"]], page["has_more"], page["last_id"]) == (ids[:2], True, ids[1])
    rest = caller.get(f"/v1/files?order=asc&after={ids[1]}")
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert caller.get("/v1/files?purpose=evals")["data"] == []
    content: Any = caller.client.get(f"/v1/files/{ids[1]}/content")
    assert b"".join(content) == b"b"
    assert caller.call(f"/v1/files/{ids[1]}", None, method="delete")["deleted"]
    caller.get(f"/v1/files/{ids[1]}/content", 404)
    caller.call(f"/v1/files/{ids[1]}", None, 404, method="delete")
    assert len(left_behind()) == 2


def test_a_small_file_may_come_in_one_piece(caller: Caller) -> None:
    form = {"file": ContentFile(b"{}\n", "set.jsonl"), "purpose": "evals"}
    file = caller.call("/v1/files", form, format="multipart")
    assert (file["filename"], file["purpose"], file["bytes"], file["status"]) == ("set.jsonl", "evals", 3, "uploaded")
    for wrong in ({"purpose": "evals"}, {"file": ContentFile(b"x", "a"), "purpose": "spam"}):
        caller.call("/v1/files", wrong, 400, format="multipart")


@pytest.mark.django_db(transaction=True)
def test_a_file_is_streamed_in_ranges_and_without_a_connection_to_the_database(caller: Caller) -> None:
    path = f"/v1/files/{caller.whole(b'0123456789', 'a.jsonl')['file']['id']}/content"
    whole: Any = caller.client.get(path)
    assert connection.connection is None  # however long the client reads
    assert whole.is_async  # Django makes one list of what is not, under ASGI
    assert (b"".join(whole), whole.headers["Content-Length"]) == (b"0123456789", "10")
    part: Any = caller.client.get(path, headers={"Range": "bytes=2-4", "If-Range": whole.headers["ETag"]})
    assert (part.status_code, b"".join(part), part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    head = caller.client.head(path)
    assert (head.headers["Content-Length"], head.content) == ("10", b"")
