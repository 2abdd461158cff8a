"""Knows where uploads wait, and that they get there whole or not at all; nothing of what they hold or who sent them.

<home>/quarantine/<version id>/<file>      until the version is ready or rejected
<home>/quarantine/incoming/<temporary>     while a request is being read, locked by who reads it: the system unlocks it
                                           when that process dies
<home>/quarantine/uploads/<upload id>/     uploads in parts (registry.assembly)
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.files import File
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler

from adapters.limits import DEFAULT
from registry.errors import UploadMalformed, UploadTooLarge

MAX_FILES = 64  # a folder as trainers leave it, without what lies deeper
FORM_OVERHEAD = 64 * 1024  # boundaries and part headers of a multipart body
UNSAFE = re.compile(r"[^A-Za-z0-9._-]|^\.+")
WORK = ".work-"
UPLOADS = "uploads"
FRESH = 60  # seconds that a file may take from being made to being locked


def root() -> Path:
    home: Path = settings.LORAYARD.home
    return home / "quarantine"


def folder(version: UUID) -> Path:
    return root() / str(version)


def admit(version: UUID, files: Iterable[File[Any]]) -> int:
    """Store the files for this version; returns their bytes. On any failure nothing is left."""
    files = list(files)
    names = [_safe(file.name or "") for file in files]
    if not 1 <= len(names) <= MAX_FILES:
        raise UploadMalformed("Send adapter_config.json and adapter_model.safetensors, or one archive of them.")
    if len(set(names)) < len(names):
        raise UploadMalformed("Two of the files have the same name.")
    target = folder(version)
    target.mkdir(parents=True, mode=0o700)
    try:
        left = DEFAULT.total
        for name, file in zip(names, files, strict=True):
            left -= _take(file, target / name, left)
        return DEFAULT.total - left
    except BaseException:
        discard(version)
        raise


def files_of(version: UUID) -> list[Path]:
    """The version's files as uploaded; empty when they are gone."""
    if not folder(version).is_dir():
        return []
    return sorted(path for path in folder(version).iterdir() if not path.name.startswith(WORK))


@contextmanager
def workspace(version: UUID) -> Iterator[Path]:
    """An empty folder beside the version's files; it goes with them, should its maker be killed."""
    with tempfile.TemporaryDirectory(prefix=WORK, dir=folder(version), ignore_cleanup_errors=True) as work:
        yield Path(work)


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder that is no version's; `sweep` removes it, should its maker be killed."""
    root().mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=WORK, dir=root(), ignore_cleanup_errors=True) as work:
        yield Path(work)


def discard(version: UUID) -> None:
    shutil.rmtree(folder(version), ignore_errors=True)


def sweep(keep: Iterable[UUID], older_than: float) -> int:
    """Remove what processes that died left behind: all but `keep` that is older than so many seconds."""
    kept = {str(version) for version in keep}
    horizon = time.time() - older_than
    folders = [path for path in _entries(root()) if path.name not in kept | {"incoming", UPLOADS}]
    left = [path for path in folders if _modified(path) < horizon]
    for path in left:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return len(left) + sweep_incoming(min(older_than, FRESH))


def sweep_incoming(older_than: float = FRESH) -> int:
    """Remove what processes that died were reading. Asks no database, so that a process may begin with it."""
    horizon = time.time() - older_than
    left = [path for path in _entries(root() / "incoming") if _modified(path) < horizon and _is_dead(path)]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


class Landing(UploadedFile):  # type: ignore[type-arg]  # generic in the stubs alone
    """One file of a request, on the same disk as the quarantine, so that admitting it is a rename."""

    def __init__(self, name: str, content_type: str | None) -> None:
        incoming = root() / "incoming"
        incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = tempfile.NamedTemporaryFile(dir=incoming, delete=False)  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        super().__init__(file, name, content_type, 0)

    @property
    def path(self) -> Path:
        assert self.file is not None
        return Path(self.file.name or "")

    def close(self) -> None:
        """Away with it, unless it was admitted. What a full disk did not take of it is of no interest any more."""
        with suppress(OSError):
            super().close()
        self.path.unlink(missing_ok=True)


class Waiting(File):  # type: ignore[type-arg]
    """A file that is on the quarantine's disk already: admitting it is a link."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(None, name)
        self.path = path


class Incoming(FileUploadHandler):
    """Reads a request's files into the quarantine, as far as the limit; `end` it when the request is answered."""

    chunk_size = 1 << 20

    def __init__(self, request: Any = None, limit: int | None = None) -> None:
        super().__init__(request)
        self.limit = DEFAULT.total if limit is None else limit
        self.received = 0
        self.landed: list[Landing] = []

    def handle_raw_input(self, input_data: Any, META: Any, content_length: int, *args: Any, **kwargs: Any) -> None:
        if content_length > self.limit + FORM_OVERHEAD:
            raise UploadTooLarge(self.limit)

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        self.landed.append(Landing(self.file_name or "", self.content_type))

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self.received += len(raw_data)
        if self.received > self.limit:
            raise UploadTooLarge(self.limit)
        self.landed[-1].write(raw_data)

    def file_complete(self, file_size: int) -> Landing:
        file = self.landed[-1]
        file.seek(0)
        file.size = file_size
        return file

    def end(self) -> None:
        """Call it when the request is answered: what nobody admitted goes, however the request ended."""
        for file in self.landed:
            file.close()


def _take(file: File[Any], target: Path, limit: int) -> int:
    if isinstance(file, Waiting):
        target.hardlink_to(file.path)
        if target.stat().st_size > limit:
            raise UploadTooLarge(DEFAULT.total)
        return target.stat().st_size
    if isinstance(file, Landing):
        if (file.size or 0) > limit:
            raise UploadTooLarge(DEFAULT.total)
        file.flush()
        os.rename(file.path, target)
        return target.stat().st_size
    taken = 0
    with target.open("wb") as copy:
        for chunk in file.chunks():
            taken += len(chunk)
            if taken > limit:
                raise UploadTooLarge(DEFAULT.total)
            copy.write(chunk)
    return taken


def _is_dead(path: Path) -> bool:
    """Whether nobody holds the file's lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or gone
        return False
    return True


def _safe(name: str) -> str:
    """The last part of the name with everything odd replaced: harmless on disk, yet telling in a finding."""
    return UNSAFE.sub("_", re.split(r"[/\\]", name)[-1])[:100] or "unnamed"


def _entries(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
