"""Encoded bodies are decoded within the bound, or refused with the encodings that are known."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from backports import zstd

from gateway.encodings import decoded
from gateway.errors import BadRequest, TooLarge, UnsupportedEncoding
from tests.gateway.conftest import Customer

LIMIT = 1 << 20
BODY = json.dumps({"model": "support", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}).encode()


def raw(body: bytes) -> bytes:
    """Without zlib's frame, as some clients mean "deflate"."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(body) + deflate.flush()


Encode = Callable[[bytes], bytes]
ENCODINGS: list[tuple[str, Encode]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw),
    ("zstd", zstd.compress),
    ("GZIP, identity", gzip.compress),
    ("identity", bytes),
    ("", bytes),
]


@pytest.mark.parametrize(("name", "encode"), ENCODINGS)
def test_what_was_encoded_is_decoded(name: str, encode: Encode) -> None:
    assert decoded(encode(BODY), name, LIMIT) == BODY
    assert decoded(encode(b"x" * LIMIT), name, LIMIT) == b"x" * LIMIT


@pytest.mark.parametrize(("name", "encode"), ENCODINGS[:5])
def test_a_bomb_is_refused_before_it_unfolds(name: str, encode: Encode) -> None:
    with pytest.raises(TooLarge):
        decoded(encode(bytes(64 * LIMIT)), name, LIMIT)


@pytest.mark.parametrize(("name", "encode"), ENCODINGS[:5])
@pytest.mark.parametrize("damage", [lambda body: body[:-9], lambda body: b"", lambda body: b"\x13" * 40])
def test_a_damaged_body_is_refused(name: str, encode: Encode, damage: Encode) -> None:
    with pytest.raises(BadRequest) as refused:
        decoded(damage(encode(BODY)), name, LIMIT)
    assert refused.value.code == "invalid_encoding"


@pytest.mark.parametrize("name", ["br", "compress", "gzip, gzip", "deflate,zstd"])
def test_other_encodings_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(UnsupportedEncoding) as refused:
        decoded(BODY, name, LIMIT)
    assert refused.value.headers["Accept-Encoding"] == "gzip, x-gzip, deflate, zstd"


@pytest.mark.parametrize(("name", "encode"), ENCODINGS[:5])
def test_a_chat_may_be_asked_for_in_any_of_them(buyer: Customer, stranger: Customer, name: str, encode: Encode) -> None:
    def status(customer: Customer, body: bytes) -> int:
        headers: dict[str, Any] = {"Content-Encoding": name}
        return customer.request("POST", "/v1/chat/completions", content=body, headers=headers).status_code

    assert status(buyer, encode(BODY)) == 200
    assert status(stranger, encode(BODY)) == 404
    assert status(buyer, encode(bytes(8 * 2**20 + 1))) == 413


def test_an_unknown_encoding_is_415(buyer: Customer) -> None:
    answer = buyer.request("POST", "/v1/chat/completions", content=BODY, headers={"Content-Encoding": "br"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert "zstd" in answer.headers["accept-encoding"]
