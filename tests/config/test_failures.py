"""What is answered while the database is away, and where a request fails before there is one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.db import connection
from django.test import Client

from config.asgi import control_plane
from tests.disks import fill, small_disk

KEY = {"Authorization": f"Bearer ly_{'0' * 12}_{'0' * 64}"}


def calling() -> httpx.AsyncClient:
    plane: Any = control_plane
    return httpx.AsyncClient(transport=httpx.ASGITransport(plane), base_url="http://localhost")


@pytest.fixture
def away(django_db_blocker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody listens where the database should be."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "HOST", str(tmp_path))
    monkeypatch.setattr("tests.conftest.web_role", django_db_blocker.unblock)
    with django_db_blocker.unblock():
        yield
        connection.close()


@pytest.mark.parametrize("path", ["/api/v1/adapters", "/api/v1/keys", "/v1/uploads/upload_1", "/v1/files"])
def test_a_database_that_is_away_is_a_503_that_says_when_to_ask_again(away: None, path: str) -> None:
    answer = Client(raise_request_exception=False, headers=KEY).get(path)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (503, "server_error", "service_unavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_so_it_is_on_the_consoles_pages(away: None) -> None:
    client = Client(raise_request_exception=False)
    client.cookies["sessionid"] = "a" * 32
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "database does not answer" in answer.content.decode()


@pytest.mark.parametrize("path", ["/api/v1/keys", "/v1/files", "/login/"])
async def test_a_body_that_finds_no_room_on_the_disk_is_a_507(
    path: str, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 1000
    with small_disk(tmp_path / "small", 64) as folder:
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        fill(folder)
        async with calling() as web:
            answer = await web.post(path, content=bytes(500_000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize("charset", ["rot13", "base64", "utf-7", "unicode_escape", "utf-16", "bogus"])
async def test_text_is_utf_8_whatever_a_charset_says(charset: str) -> None:
    kind = {"content-type": f"application/json; charset={charset}"}
    async with calling() as web:
        answer = await web.post("/api/none?a=%2B2AA-", content=b"{}", headers=kind)
    assert answer.status_code == 404


async def test_a_content_type_that_is_none_is_no_fault_of_ours() -> None:
    for kind in ("multipart/form-data; boundary*=bogus''x", "\xff", "a; b*0*=x''%ff"):
        async with calling() as web:
            answer = await web.post("/api/none", content=b"{}", headers={b"content-type": kind.encode("latin-1")})
        assert answer.status_code == 404
