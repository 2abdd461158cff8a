"""Knows which files a version holds and derives its digest; never where they are kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from adapters.errors import Corrupt
from adapters.files import CHUNK, DROPPED, open_regular

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

Turn = Callable[[], AbstractContextManager[None]]
"""Every chunk is hashed or written within one; what it raises ends the work."""


def is_digest(text: str) -> bool:
    return DIGEST.fullmatch(text) is not None


def chunks(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk


@dataclass(frozen=True, order=True)
class File:
    """`name` without folders, `size` in bytes, `sha256` in 64 lower-case hex digits. Raises ValueError otherwise."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise ValueError(f"{self.name!r} can't name a stored file")
        if type(self.size) is not int or self.size < 0:
            raise ValueError(f"{self.size!r} can't be a size")
        if not (isinstance(self.sha256, str) and _HEX.fullmatch(self.sha256)):
            raise ValueError(f"{self.sha256!r} can't be a sha256")

    @classmethod
    def of(cls, path: Path, turn: Turn = nullcontext) -> File:
        hasher, size = hashlib.sha256(), 0
        with open_regular(path) as source:
            for chunk in chunks(source):
                with turn():
                    hasher.update(chunk)
                size += len(chunk)
        return cls(path.name, size, hasher.hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The files of one version, sorted by name: equal files have equal digests, wherever they come from."""

    files: tuple[File, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.files))
        if len({file.name for file in ordered}) != len(ordered):
            raise ValueError("a manifest names a file twice")
        if not ordered:
            raise ValueError("a manifest without files")
        object.__setattr__(self, "files", ordered)

    @classmethod
    def of(cls, folder: Path, turn: Turn = nullcontext) -> Manifest:
        """Hash every file in `folder` but the dropped ones. Raises Rejected on a link, OSError, ValueError."""
        names = sorted(name for name in os.listdir(folder) if name not in DROPPED)
        return cls(tuple(File.of(folder / name, turn) for name in names))

    @classmethod
    def parse(cls, raw: bytes) -> Manifest:
        """The inverse of `canonical`. Raises Corrupt on any other bytes, so a digest has exactly one manifest."""
        try:
            document = json.loads(raw)
            manifest = cls(tuple(File(**entry) for entry in document["files"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Corrupt(f"not a manifest: {error}") from error
        if manifest.canonical() != raw:
            raise Corrupt("a manifest that isn't in canonical form")
        return manifest

    def canonical(self) -> bytes:
        document = {"files": [asdict(file) for file in self.files], "version": 1}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)
