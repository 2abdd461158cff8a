"""Knows where versions' files are kept, by content alone; never tenants, adapters' names or what the files mean.

    <url>/blobs/<sha256>        a file's bytes
    <url>/manifests/<sha256>    a version's manifest, in canonical form
    <url>/incoming/<random>     what is being written; moved to its final name when it is whole

A manifest is written after its blobs and deleted before them, so a version that is listed is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import IO, Any, Final, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from adapters.errors import Corrupt, Missing
from adapters.files import open_regular
from adapters.manifest import File, Manifest, Turn, chunks, is_digest

_MANIFEST_BYTES: Final = 1 << 20

_S3_ERRORS: Final = ("botocore", "aiobotocore", "aiohttp")  # what s3fs lets through of a server that is away

P = ParamSpec("P")
R = TypeVar("R")


def _told_as_os_error(act: Callable[P, R]) -> Callable[P, R]:
    """A server that is away, or gives up in the middle, is an OSError, as a disk's faults are."""

    @wraps(act)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return act(*args, **kwargs)
        except Exception as error:
            if isinstance(error, OSError) or not type(error).__module__.startswith(_S3_ERRORS):
                raise
            raise OSError(f"the store does not answer: {type(error).__name__}") from error

    return told


class Store:
    """A content-addressed store under an fsspec URL (file://, s3://, memory://).

    Any number of processes may put, fetch and delete at once. A store that can't be reached is an OSError. On a local
    store deletes wait for puts by a file lock; on an object store the caller sees to it that a delete doesn't run
    beside a put of the same files.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    @_told_as_os_error
    def put(self, folder: Path) -> Manifest:
        """Store the files of `folder`; twice is as good as once. Raises Corrupt if they change meanwhile, OSError."""
        manifest = Manifest.of(folder)
        with self._lock(fcntl.LOCK_SH):
            for file in manifest.files:
                self._put_blob(folder / file.name, file)
            if not self.has(manifest.digest):
                self._write(self._manifest_path(manifest.digest), manifest.canonical())
        return manifest

    @_told_as_os_error
    def has(self, digest: str) -> bool:
        return is_digest(digest) and bool(self._fs.exists(self._manifest_path(digest)))

    @_told_as_os_error
    def manifest(self, digest: str) -> Manifest:
        """Raises Missing where there is no such version, Corrupt where its manifest isn't what its digest says."""
        if not is_digest(digest):
            raise Missing(f"{digest[:100]!r} is no digest")
        try:
            with self._fs.open(self._manifest_path(digest), "rb") as source:
                manifest = Manifest.parse(source.read(_MANIFEST_BYTES))
        except FileNotFoundError as error:
            raise Missing(f"the store has no version {digest}") from error
        if manifest.digest != digest:
            raise Corrupt(f"the manifest of {digest} has the digest {manifest.digest}")
        return manifest

    @_told_as_os_error
    def fetch(self, digest: str, into: Path, manifest: Manifest | None = None, turn: Turn = nullcontext) -> Manifest:
        """Copy a version's files into the folder `into`, hashing every byte on the way.

        Each file appears under its name only when it is whole and right. `manifest` is read where it isn't given.
        Every chunk is hashed and written within a `turn()`; what that raises ends the fetch. Raises Missing or Corrupt.
        A fetch that fails takes away what it has put into the folder.
        """
        manifest = manifest or self.manifest(digest)
        into.mkdir(parents=True, exist_ok=True)
        fetched: list[Path] = []
        try:
            for file in manifest.files:
                self._fetch_blob(file, into, turn)
                fetched.append(into / file.name)
        except BaseException:
            for path in fetched:
                path.unlink(missing_ok=True)
            raise
        return manifest

    @_told_as_os_error
    def files(self, digest: str, turn: Turn = nullcontext) -> Files | None:
        """A version's files where they lie, every byte hashed, each chunk within a `turn()`; None unless it is here.

        They stay while the version does. Raises Missing or Corrupt.
        """
        if not self._local:
            return None
        manifest = self.manifest(digest)
        paths = {file.name: Path(self._blob_path(file.sha256)) for file in manifest.files}
        for file in manifest.files:
            try:
                with paths[file.name].open("rb") as source, Path(os.devnull).open("wb") as nowhere:
                    _copy(source, nowhere, file, turn)
            except FileNotFoundError as error:
                raise Missing(f"the store has lost {file.name} ({file.sha256})") from error
        return Files(paths)

    @_told_as_os_error
    def delete(self, digest: str) -> None:
        """Forget a version, and its blobs unless other versions hold them. Deleting what isn't there does nothing."""
        with self._lock(fcntl.LOCK_EX):
            try:
                own = _blobs(self.manifest(digest))
            except Missing:
                return
            except Corrupt:
                own = set()
            others = (self.manifest(other) for other in self.digests() if other != digest)
            unshared = own.difference(*map(_blobs, others))
            self._fs.rm_file(self._manifest_path(digest))
            for sha256 in unshared:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(self._blob_path(sha256))

    def digests(self) -> Iterator[str]:
        """Every version in the store."""
        for path in self._list("manifests"):
            if is_digest(digest := "sha256:" + path.rpartition("/")[2]):
                yield digest

    @_told_as_os_error
    def sweep(self, older_than: float) -> int:
        """Remove what dead processes left: files that are older than so many seconds and that no version holds.

        As with `delete`, an object store needs the caller to keep puts away meanwhile. Returns how many.
        """
        horizon = datetime.now(UTC) - timedelta(seconds=older_than)
        with self._lock(fcntl.LOCK_EX):
            held = {self._blob_path(sha256) for digest in self.digests() for sha256 in _blobs(self.manifest(digest))}
            found = [path for folder in ("incoming", "blobs") for path in self._list(folder) if path not in held]
            left = [path for path in found if self._fs.modified(path) < horizon]
            for path in left:
                self._fs.rm_file(path)
        return len(left)

    @_told_as_os_error
    def _list(self, folder: str) -> list[str]:
        try:
            return [str(path) for path in self._fs.ls(f"{self._root}/{folder}", detail=False)]
        except FileNotFoundError:
            return []

    def _put_blob(self, path: Path, file: File) -> None:
        if self._fs.exists(self._blob_path(file.sha256)) and self._fs.size(self._blob_path(file.sha256)) == file.size:
            return
        with open_regular(path) as source, self._incoming(self._blob_path(file.sha256)) as target:
            _copy(source, target, file)

    def _fetch_blob(self, file: File, into: Path, turn: Turn) -> None:
        temporary = into / f".{file.name}.{uuid.uuid4().hex}"
        try:
            with self._fs.open(self._blob_path(file.sha256), "rb") as source, temporary.open("xb") as target:
                _copy(source, target, file, turn)
            temporary.replace(into / file.name)
        except FileNotFoundError as error:
            raise Missing(f"the store has lost {file.name} ({file.sha256})") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, path: str, content: bytes) -> None:
        with self._incoming(path) as target:
            target.write(content)

    @contextmanager
    def _incoming(self, path: str) -> Iterator[IO[bytes]]:
        """A file to write, which is at `path` once the block has ended well, and nowhere otherwise."""
        temporary = f"{self._root}/incoming/{uuid.uuid4().hex}"
        for folder in (temporary, path):
            self._fs.makedirs(folder.rpartition("/")[0], exist_ok=True)
        try:
            with self._fs.open(temporary, "wb") as target:
                yield target
                target.flush()
                if self._local:
                    os.fsync(target.fileno())
            self._fs.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(temporary)
            raise

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Held by puts together, by a delete alone. Only a local store has one."""
        if not self._local:
            yield
            return
        Path(self._root).mkdir(parents=True, exist_ok=True)
        with (Path(self._root) / ".lock").open("a") as lock:
            fcntl.flock(lock, kind)
            yield

    def _manifest_path(self, digest: str) -> str:
        return f"{self._root}/manifests/{digest.removeprefix('sha256:')}"

    def _blob_path(self, sha256: str) -> str:
        return f"{self._root}/blobs/{sha256}"


class Files:
    """A version's files in the store itself, which are nobody's to write: `files / name` is where one lies."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    def __truediv__(self, name: str) -> Path:
        """Raises FileNotFoundError for a file that the version doesn't have."""
        if name not in self._paths:
            raise FileNotFoundError(name)
        return self._paths[name]


def _blobs(manifest: Manifest) -> set[str]:
    return {file.sha256 for file in manifest.files}


def _copy(source: Any, target: Any, file: File, turn: Turn = nullcontext) -> None:
    """Raises Corrupt unless exactly the bytes that `file` describes were copied."""
    hasher, size = hashlib.sha256(), 0
    for chunk in chunks(source):
        with turn():
            hasher.update(chunk)
            size += len(chunk)
            target.write(chunk)
    if (size, hasher.hexdigest()) != (file.size, file.sha256):
        raise Corrupt(f"{file.name} isn't what its digest says: {size} bytes, sha256 {hasher.hexdigest()}")
