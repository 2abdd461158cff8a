"""Who is nobody yet gets little room on the disk."""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from config.bodies import AT_ONCE
from tests.processes import Platform, wait_for


def large(mebibytes: int = 3) -> Iterator[bytes]:
    for _ in range(mebibytes * 4):
        yield b"x" * (1 << 18)


Body = Callable[[], Iterator[bytes] | bytes]


@pytest.mark.parametrize("body", [large, lambda: b"".join(large())], ids=["chunked", "with a length"])
@pytest.mark.parametrize("path", ["/api/v1/adapters/x/versions", "/v1/uploads/x/parts", "/login/", "/nothing"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer ly_000000000000_" + "0" * 64}, {"Cookie": "sessionid=" + "a" * 32}],
    ids=["nobody", "a key that is none", "a session that is none"],
)
def test_a_large_body_from_nobody_is_not_read(
    platform: Platform, body: Body, path: str, headers: dict[str, str]
) -> None:
    try:
        answer = httpx.post(platform.url + path, content=body(), headers=headers, timeout=60)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return  # the server hung up while we were still sending
    assert answer.status_code == 413


def test_a_live_key_may_send_a_large_body(platform: Platform) -> None:
    _, key = platform.tenant("hooli")
    files = {"file": ("adapter_model.safetensors", b"x" * (3 << 20))}
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{platform.url}/api/v1/adapters/big/versions", files=files, headers=headers, timeout=60)
    assert answer.status_code == 202, answer.text


def test_a_part_may_be_as_large_as_openais_and_what_describes_an_upload_small(platform: Platform) -> None:
    _, key = platform.tenant("hooli")
    headers, size = {"Authorization": f"Bearer {key}"}, 64 << 20

    def sent(path: str, **what: Any) -> httpx.Response:
        return httpx.post(f"{platform.url}/v1/uploads{path}", headers=headers, timeout=60, **what)

    about = {"bytes": size, "filename": "a.zip", "purpose": "adapter"}
    upload = sent("", json=about).json()["id"]
    assert sent(f"/{upload}/parts", files={"data": bytes(size)}).json()["bytes"] == size
    for path, what in ((f"/{upload}/parts", {"files": {"data": bytes(size + (2 << 20))}}), ("", {"content": large()})):
        with suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # the server may hang up on us
            assert sent(path, **what).status_code == 413
    assert sent(f"/{upload}/cancel").json()["status"] == "cancelled"


def test_what_the_quota_does_not_let_in_is_not_read(platform: Platform) -> None:
    """Neither with a length, nor in chunks, nor as a file of its own; and what fits goes on."""
    slug, key = platform.tenant("full")
    platform.call("PATCH", f"tenants/{slug}", platform.operator_key, quota_bytes=1 << 20)
    headers = {"Authorization": f"Bearer {key}"}
    for path in ("/api/v1/adapters/big/versions", "/v1/files"):
        for content in (large(8), b"".join(large(8))):
            with suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # the server may hang up on us
                answer = httpx.post(platform.url + path, content=content, headers=headers, timeout=20)
                assert answer.status_code == 403, answer.text
                error = answer.json()["error"]
                assert (error["code"], error["quota"], error["limit"]) == ("quota_exceeded", "bytes", 1 << 20)
    assert platform.call("GET", "quotas", key)["bytes"]["used"] == 0
    small = {"file": ("adapter_model.safetensors", b"x" * 1000)}
    fits = httpx.post(f"{platform.url}/api/v1/adapters/big/versions", files=small, headers=headers, timeout=30)
    assert fits.status_code == 202, fits.text


def test_a_tenant_has_a_few_large_bodies_read_at_once(platform: Platform) -> None:
    """One that is slow, or stops in the middle, takes a place of its tenant's and nobody else's."""
    (_, key), (_, other) = platform.tenant("hooli"), platform.tenant("busy")
    slow = [begun(platform, key) for _ in range(AT_ONCE)]
    try:
        url = f"{platform.url}/api/v1/adapters/big/versions"
        files = {"file": ("adapter_model.safetensors", b"x" * (3 << 20))}

        def sent(who: str) -> int:
            try:
                return httpx.post(url, files=files, headers={"Authorization": f"Bearer {who}"}, timeout=30).status_code
            except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
                return 429  # the server hung up while we were still sending

        wait_for(lambda: sent(key) == 429, 20, "the tenant's places being taken")
        assert sent(other) == 202
    finally:
        for connection in slow:
            connection.close()
    wait_for(lambda: sent(key) == 202, 20, "a place becoming free")


def test_who_may_not_upload_takes_no_place_of_who_may(platform: Platform) -> None:
    """Not even by announcing a body and sending none."""
    slug, key = platform.tenant("hooli")
    infers = platform.key(slug, "--scope", "inference")
    silent = [begun(platform, infers, sent=0) for _ in range(2 * AT_ONCE)]
    try:
        for connection in silent:
            assert connection.recv(12) == b"HTTP/1.1 403"
        files = {"file": ("adapter_model.safetensors", b"x" * (3 << 20))}
        url, headers = f"{platform.url}/api/v1/adapters/big/versions", {"Authorization": f"Bearer {key}"}
        assert httpx.post(url, files=files, headers=headers, timeout=60).status_code == 202
    finally:
        for connection in silent:
            connection.close()


def begun(platform: Platform, key: str, sent: int = 2 << 20) -> socket.socket:
    """A large upload of which so many bytes are sent, and then nothing."""
    host, port = platform.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST /api/v1/adapters/big/versions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    connection.sendall(
        f"{head}Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9999999\r\n\r\n".encode()
    )
    connection.sendall(b"x" * sent)
    return connection
