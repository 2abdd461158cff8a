"""The container is read as strictly as safetensors' own library reads it, and without believing any number in it."""

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import Rejected
from adapters.files import WEIGHTS
from adapters.header import parse_header, read_header
from adapters.limits import Limits
from tests.adapters.builders import container, entries, tensors, values, weights


def refused(folder: Path, content: bytes, limits: Limits | None = None) -> tuple[str, ...]:
    path = folder / WEIGHTS
    path.write_bytes(content)
    with pytest.raises(Rejected) as refusal:
        read_header(path, limits or Limits())
    return refusal.value.rules


def test_tensors_are_found_where_they_are(tmp_path: Path) -> None:
    made = tensors()
    (tmp_path / WEIGHTS).write_bytes(content := weights(made))
    header = read_header(tmp_path / WEIGHTS)
    assert header.size == len(content)
    for name, (dtype, shape, raw) in made.items():
        tensor = header.tensors[name]
        assert (tensor.dtype, tensor.shape, content[tensor.start : tensor.end]) == (dtype, shape, raw)


def test_order_in_the_document_and_padding_after_it_are_free(tmp_path: Path) -> None:
    made = tensors()
    document = {"__metadata__": {"format": "pt"}, **dict(reversed(entries(made).items()))}
    raw = json.dumps(document).encode() + b"   "
    (tmp_path / WEIGHTS).write_bytes(container(raw, b"".join(raw for _, _, raw in made.values())))
    header = read_header(tmp_path / WEIGHTS)
    assert list(header.tensors) == list(made)
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "truncated"),
        (b"\1\0\0", "truncated"),
        (struct.pack("<Q", 2), "truncated"),
        (struct.pack("<Q", 2**63) + b"{}", "header-too-large"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header-too-large"),
        (struct.pack("<Q", 2**20 + 1) + b"{" + b" " * 2**20, "header-too-large"),
        (container(b"{}", b"", length=100), "truncated"),
        (container(b"{}", b""), "no-tensors"),
        (container(b'{"__metadata__": {}}', b""), "no-tensors"),
        (container(b"[]", b""), "malformed-header"),
        (container(b" {}", b""), "malformed-header"),
        (container(b"null", b""), "malformed-header"),
        (container(b"{", b""), "malformed-json"),
        (container(b"\xff\xfe", b""), "malformed-json"),
        (container(b"[" * 500_000, b""), "malformed-json"),
        (container(b'{"a":' * 100_000, b""), "malformed-json"),
        (container(b'{"a": ' + b"9" * 10_000 + b"}", b""), "malformed-json"),
        (container(b'{"a": NaN}', b""), "malformed-json"),
        (container(b'{"__metadata__": {"a": 1}}', b""), "malformed-header"),
        (container(b'{"__metadata__": []}', b""), "malformed-header"),
        (b"PK\x03\x04" + b"\0" * 100, "pickle"),
        (b"\x80\x02}q\x00." + b"\0" * 100, "pickle"),
        (b"\x80\x05\x95\x10\0\0\0\0\0\0\0}\x94." + b"\0" * 100, "pickle"),
        (b"\x1f\x8b\x08\0" + b"\0" * 100, "nested-archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "lfs-pointer"),
    ],
)
def test_what_is_no_container_is_refused_for_what_it_is(tmp_path: Path, content: bytes, rule: str) -> None:
    assert refused(tmp_path, content) == (rule,)


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        (1, "malformed-header"),
        ({}, "malformed-header"),
        ({**ENTRY, "extra": 1}, "malformed-header"),
        ({**ENTRY, "dtype": "F64"}, "dtype"),
        ({**ENTRY, "dtype": "I8"}, "dtype"),
        ({**ENTRY, "dtype": "f32"}, "dtype"),
        ({**ENTRY, "dtype": ["F32"]}, "dtype"),
        ({**ENTRY, "dtype": None}, "dtype"),
        ({**ENTRY, "shape": [2.0, 2]}, "malformed-header"),
        ({**ENTRY, "shape": [-2, -2]}, "malformed-header"),
        ({**ENTRY, "shape": [True, 4]}, "malformed-header"),
        ({**ENTRY, "shape": "22"}, "malformed-header"),
        ({**ENTRY, "shape": [1] * 9}, "malformed-header"),
        ({**ENTRY, "shape": [10**400, 1]}, "malformed-header"),
        ({**ENTRY, "shape": [[2], 2]}, "malformed-header"),
        ({**ENTRY, "shape": [2, 3]}, "wrong-length"),
        ({**ENTRY, "shape": [2**62, 2**62]}, "wrong-length"),
        ({**ENTRY, "shape": [0, 2]}, "wrong-length"),
        ({**ENTRY, "dtype": "F16"}, "wrong-length"),
        ({**ENTRY, "data_offsets": [0]}, "malformed-header"),
        ({**ENTRY, "data_offsets": [16, 0]}, "malformed-header"),
        ({**ENTRY, "data_offsets": [-16, 0]}, "malformed-header"),
        ({**ENTRY, "data_offsets": [0, 16, 32]}, "malformed-header"),
        ({**ENTRY, "data_offsets": [0, "16"]}, "malformed-header"),
        ({**ENTRY, "data_offsets": [4, 20]}, "gap"),
    ],
)
def test_an_entry_that_lies_is_refused_with_the_tensors_name(tmp_path: Path, entry: Any, rule: str) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(container({"t": entry}, bytes(16)))
    with pytest.raises(Rejected) as refusal:
        read_header(path)
    assert refusal.value.findings[0].rule == rule
    assert refusal.value.findings[0].tensor == "t"


def test_two_tensors_must_tile_the_data(tmp_path: Path) -> None:
    def two(first: list[int], second: list[int], size: int) -> bytes:
        return container({"a": {**ENTRY, "data_offsets": first}, "b": {**ENTRY, "data_offsets": second}}, bytes(size))

    assert refused(tmp_path, two([0, 16], [0, 16], 16)) == ("overlap",)
    assert refused(tmp_path, two([0, 16], [8, 24], 24)) == ("overlap",)
    assert refused(tmp_path, two([0, 16], [24, 40], 40)) == ("gap",)
    assert refused(tmp_path, two([0, 16], [16, 32], 31)) == ("truncated",)
    assert refused(tmp_path, two([0, 16], [16, 32], 33)) == ("trailing-bytes",)
    assert refused(tmp_path, two([0, 16], [2**62, 2**62 + 16], 32)) == ("gap", "truncated")


def test_a_key_that_comes_twice_is_refused_wherever_it_is(tmp_path: Path) -> None:
    entry = json.dumps(ENTRY)
    assert refused(tmp_path, container(f'{{"t": {entry}, "t": {entry}}}'.encode(), bytes(16))) == ("duplicate-key",)
    inside = '{"t": {"dtype": "F32", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'
    assert refused(tmp_path, container(inside.encode(), bytes(16))) == ("duplicate-key",)


def test_more_tensors_than_allowed_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, weights(), Limits(tensors=7)) == ("too-many-tensors",)


def test_a_link_instead_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(weights())
    (tmp_path / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Rejected) as refusal:
        read_header(tmp_path / WEIGHTS)
    assert refusal.value.rules == ("link",)


def test_lying_lengths_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    huge = {"t": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    for content in (struct.pack("<Q", 2**40) + b"{" + bytes(64), container(huge, b"")):
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(Rejected):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        tracemalloc.stop()


NUMBERS = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**63, 2**64]))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16"]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
    }
)


@settings(max_examples=200)
@given(
    document=st.dictionaries(st.text("ab.", min_size=1, max_size=3), ENTRIES, min_size=1, max_size=3),
    size=st.integers(0, 64),
)
def test_what_is_accepted_here_is_accepted_by_the_library(document: dict[str, Any], size: int) -> None:
    """And what it refuses is refused here."""
    content = container(document, bytes(size))
    raw = content[8 : len(content) - size]
    try:
        header = parse_header(raw, len(content))
    except Rejected:
        return
    deserialize: Any = safetensors.deserialize
    theirs = dict(deserialize(content))
    assert {name: list(tensor.shape) for name, tensor in header.tensors.items()} == {
        n: t["shape"] for n, t in theirs.items()
    }


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_bytes_end_in_a_refusal_or_a_header_never_in_another_error(data: st.DataObject) -> None:
    content = bytearray(weights({"t": ("F32", (2, 2), values((2, 2)))}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 17))] = data.draw(st.integers(0, 255))
    length = int.from_bytes(content[:8], "little")
    with contextlib.suppress(Rejected):
        parse_header(bytes(content[8 : 8 + min(length, 2**20)]), len(content))
