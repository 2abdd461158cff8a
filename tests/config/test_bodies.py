"""Who is nobody yet gets little room on the disk."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.processes import Platform


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
