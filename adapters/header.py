"""Knows the safetensors container, strictly; never what its tensors mean. Reads nothing but the header.

Format: 8 bytes little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the data without gaps
(github.com/huggingface/safetensors, "Format"). Only what that library writes is taken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adapters import strictjson
from adapters.errors import Finding, Rejected
from adapters.files import WEIGHTS, open_regular
from adapters.limits import DEFAULT, Limits

ITEM_BYTES: Final[Mapping[str, int]] = {"F32": 4, "F16": 2, "BF16": 2}
MAX_DIMENSIONS: Final = 8
_LENGTH_BYTES: Final = 8
_MAGICS: Final = {
    b"PK\x03\x04": ("pickle", "a zip file, which is how torch.save writes pickles"),
    b"\x80\x02": ("pickle", "a pickle"),
    b"\x80\x03": ("pickle", "a pickle"),
    b"\x80\x04": ("pickle", "a pickle"),
    b"\x80\x05": ("pickle", "a pickle"),
    b"\x1f\x8b": ("nested-archive", "a gzip file"),
    b"version https://git-lfs": ("lfs-pointer", "a Git LFS pointer, not the weights it points at"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """`start` and `end` are absolute byte offsets in the file; its data is little-endian, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Every tensor of a file by name, in file order. `size` is the whole file's length in bytes."""

    tensors: Mapping[str, Tensor]
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path, limits: Limits = DEFAULT) -> Header:
    """Read and check a file's header, allocating at most limits.header. Raises Rejected with every finding."""
    with open_regular(path) as source:
        size = os.fstat(source.fileno()).st_size
        prefix = source.read(32)
        for magic, (rule, what) in _MAGICS.items():
            if prefix.startswith(magic) and not _plausible(prefix, size, limits):
                raise Rejected.because(rule, f"{WEIGHTS} is {what}; save the adapter as safetensors and upload that.")
        length = _length(prefix, size, limits)
        source.seek(_LENGTH_BYTES)
        raw = source.read(length)
    return parse_header(raw, size, limits)


def parse_header(raw: bytes, size: int, limits: Limits = DEFAULT) -> Header:
    """`raw` is the JSON alone, `size` the length of the whole file. Raises Rejected with every finding."""
    try:
        document = strictjson.loads(raw)
    except strictjson.NotStrictJson as error:
        raise _malformed(f"its JSON can't be read: {error}", rule=error.rule) from error
    if not isinstance(document, dict) or not raw.startswith(b"{"):
        raise _malformed("it must be a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed("__metadata__ must map strings to strings")
    if not document:
        raise Rejected.because("no-tensors", f"{WEIGHTS} holds no tensor; save the adapter again and upload it.")
    if len(document) > limits.tensors:
        raise Rejected.because(
            "too-many-tensors",
            f"{WEIGHTS} holds {len(document)} tensors, more than the {limits.tensors} allowed.",
            expected=f"at most {limits.tensors}",
            found=str(len(document)),
        )
    data = _LENGTH_BYTES + len(raw)
    findings: list[Finding] = []
    tensors = [tensor for name, entry in document.items() if (tensor := _tensor(name, entry, data, findings))]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    findings += [] if findings else _layout(tensors, data, size)
    if findings:
        raise Rejected(findings)
    return Header({tensor.name: tensor for tensor in tensors}, size, metadata)


def _plausible(prefix: bytes, size: int, limits: Limits) -> bool:
    return prefix[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and int.from_bytes(prefix[:8], "little") <= limits.header


def _length(prefix: bytes, size: int, limits: Limits) -> int:
    if len(prefix) < _LENGTH_BYTES:
        raise _malformed(f"the file has only {size} bytes", rule="truncated")
    length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    if length > limits.header:
        message = f"The header of {WEIGHTS} claims {length} bytes, and no adapter of this base model needs so many."
        raise Rejected.because(
            "header-too-large", message, expected=f"at most {limits.header} bytes", found=str(length)
        )
    if length > size - _LENGTH_BYTES:
        raise _malformed(f"it claims {length} bytes and the file ends before that", rule="truncated")
    return length


def _tensor(name: str, entry: Any, data: int, findings: list[Finding]) -> Tensor | None:
    """One entry as a Tensor, or None and a finding."""

    def refuse(rule: str, message: str, expected: str = "", found: Any = "") -> None:
        findings.append(Finding.about(name, rule, message, expected, _shown(found)))

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse("malformed-header", "its entry must hold dtype, shape and data_offsets, and nothing else.")
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        refuse(
            "dtype",
            "its dtype isn't served; save the adapter in float32, float16 or bfloat16.",
            "F32, F16, BF16",
            dtype,
        )
        return None
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        refuse("malformed-header", f"its shape must be a list of at most {MAX_DIMENSIONS} natural numbers.", "", shape)
        return None
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse("malformed-header", "its data_offsets must be two rising natural numbers.", "", offsets)
        return None
    start, end = offsets
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - start != needed:
        refuse(
            "wrong-length", "its byte range doesn't fit its shape and dtype.", f"{needed} bytes", f"{end - start} bytes"
        )
        return None
    return Tensor(name, dtype, tuple(shape), data + start, data + end)


def _layout(tensors: list[Tensor], data: int, size: int) -> list[Finding]:
    """Findings unless the sorted tensors tile [data, size) exactly."""
    findings, position = [], data
    for tensor in tensors:
        if tensor.start != position:
            rule = "overlap" if tensor.start < position else "gap"
            what = f"there is a {rule} between its bytes and the ones before; save the adapter again."
            findings.append(Finding.about(tensor.name, rule, what, f"start at {position}", f"start at {tensor.start}"))
        position = max(position, tensor.end)
    if position > size:
        message = f"{WEIGHTS} ends before its last tensor does; upload the whole file."
        findings.append(Finding("truncated", message, "", f"{position} bytes", f"{size} bytes"))
    if position < size:
        message = f"{WEIGHTS} goes on after its last tensor; save the adapter again and upload that."
        findings.append(Finding("trailing-bytes", message, "", f"{position} bytes", f"{size} bytes"))
    return findings


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _shown(value: Any) -> str:
    """A short text for any JSON value, however deep or long."""
    flat = (
        isinstance(value, list) and len(value) <= MAX_DIMENSIONS and not any(isinstance(v, list | dict) for v in value)
    )
    return str(value)[:100] if flat or isinstance(value, str | int | float) else type(value).__name__


def _malformed(what: str, rule: str = "malformed-header") -> Rejected:
    return Rejected.because(rule, f"The header of {WEIGHTS} is damaged: {what}; save the adapter again and upload it.")
