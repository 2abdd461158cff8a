"""Knows where an upload's parts lie and how they become one file; nothing of who sent them or what they hold.

<home>/quarantine/uploads/<upload id>/<part id>     as received
<home>/quarantine/uploads/<upload id>/whole         once the upload is complete
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

from registry import quarantine
from registry.errors import ChecksumMismatch

CHUNK = 1 << 20


@dataclass(frozen=True)
class Sums:
    size: int
    sha256: str
    md5: str


def folder(upload: UUID) -> Path:
    return quarantine.root() / quarantine.UPLOADS / str(upload)


def whole(upload: UUID) -> Path:
    return folder(upload) / "whole"


def sha256_of(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def keep(upload: UUID, part: UUID, received: Path) -> None:
    """Move a received part to its place."""
    folder(upload).mkdir(parents=True, exist_ok=True, mode=0o700)
    os.rename(received, folder(upload) / str(part))


def assemble(upload: UUID, parts: Iterable[UUID]) -> Sums:
    """Write the parts in this order into one file beside them, or nothing. Again is as good as once."""
    try:
        return _assembled(whole(upload), [folder(upload) / str(part) for part in parts])
    except BaseException:
        whole(upload).unlink(missing_ok=True)
        raise


def check(upload: UUID, sums: Sums, expected: Mapping[str, str]) -> None:
    """Raise ChecksumMismatch, with the whole file gone, unless each of these is its checksum."""
    for name, value in expected.items():
        found = asdict(sums)[name]
        if found != value.lower():
            whole(upload).unlink()
            raise ChecksumMismatch(name, value, found)


def forget_parts(upload: UUID) -> None:
    """Leave the whole file alone."""
    for path in folder(upload).iterdir():
        if path != whole(upload):
            path.unlink(missing_ok=True)


def discard(upload: UUID) -> None:
    shutil.rmtree(folder(upload), ignore_errors=True)


def sweep(keep: Iterable[UUID], older_than: float) -> int:
    """Remove folders of uploads that are not among `keep` and that nothing has changed for so many seconds."""
    kept = {str(upload) for upload in keep}
    home = quarantine.root() / quarantine.UPLOADS
    paths = [path for path in home.iterdir() if path.name not in kept] if home.is_dir() else []
    left = [path for path in paths if path.stat().st_mtime < time.time() - older_than]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return len(left)


def _assembled(target: Path, parts: Iterable[Path]) -> Sums:
    size, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with target.open("wb") as file:
        for part in parts:
            for chunk in _chunks(part):
                file.write(chunk)
                sha256.update(chunk)
                md5.update(chunk)
                size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Sums(size, sha256.hexdigest(), md5.hexdigest())


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while chunk := source.read(CHUNK):
            yield chunk
