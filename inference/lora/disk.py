"""Knows which versions have copies on the local disk and how much they take; never what the files mean.

    <folder>/sha256-<hex>     a version's files, whole
    <folder>/.part-<random>   being fetched, locked by who fetches: the system unlocks it when that process dies
    <folder>/.gone-<random>   being deleted
    <folder>/.lock            held while parts are made or swept away

Engines may share a folder; each counts what it knows of. What one looks at another may have taken away meanwhile.
A disk that takes no copy does no harm where the store is local: its own files are read instead.
"""

import errno
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import Corrupt, Rejected
from adapters.manifest import Manifest, Turn, is_digest
from adapters.store import Store
from inference.lora.bounded import Bounded, Tally
from inference.lora.weights import Folder, TooLarge

log = logging.getLogger(__name__)

UNLIMITED = 1 << 60
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Copy:
    """`verified` by this process: when it was fetched, or else when it was first read."""

    folder: Path
    verified: bool


class DiskCache:
    """Copies of at most `limit` bytes, the least recently used first to go, never while they are read."""

    def __init__(self, store: Store, folder: Path, limit: int = UNLIMITED) -> None:
        self._store = store
        self._folder = folder
        self._copies: Bounded[Copy] = Bounded(limit)
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._find()

    @property
    def tally(self) -> Tally:
        return self._copies.tally

    @property
    def bytes(self) -> int:
        return self._copies.bytes

    @property
    def limit(self) -> int:
        return self._copies.limit

    def sizes(self) -> dict[str, int]:
        return self._copies.sizes()

    @contextmanager
    def open(self, digest: str, turn: Turn = nullcontext, keep: Callable[[], bool] = lambda: True) -> Iterator[Folder]:
        """A version's files by name, fetched if need be, every chunk within a `turn()`, which may raise.

        What was fetched is gone afterwards where `keep()` then says no. Raises Missing, Corrupt, TooLarge, OSError.
        """
        with ExitStack() as until_read:
            copy = self._known(digest, turn)
            if copy is not None:
                yield self._used(digest, copy, until_read)
                return
            folder: Folder
            try:
                folder = self._brought(digest, turn, keep, until_read)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                folder = self._stored(digest, turn, error)
            yield folder

    def _brought(self, digest: str, turn: Turn, keep: Callable[[], bool], until_read: ExitStack) -> Path:
        """The folder of a new copy, which lasts as long as `until_read` where it is not to be kept."""
        fetching = ExitStack()
        part, manifest = fetching.enter_context(self._fetched(digest, turn))
        if not keep():
            until_read.push(fetching)
            return part
        copy = Copy(self._path(digest), verified=True)
        with fetching:
            self._publish(part, copy.folder, manifest)
        self._delete(*(old for _, old in self._copies.put(digest, copy, manifest.size, use=True)))
        if not keep():
            self.drop(digest)
        return self._used(digest, copy, until_read)

    def _used(self, digest: str, copy: Copy, until_read: ExitStack) -> Path:
        """The copy's folder, in use until then; what is used last is known after a restart."""
        until_read.callback(self._copies.done, digest)
        with suppress(OSError):
            os.utime(copy.folder)
        return copy.folder

    def _stored(self, digest: str, turn: Turn, error: OSError) -> Folder:
        """The store's own files, hashed like every copy, where there is no room for one. Raises the error else."""
        files = self._store.files(digest, turn)
        if files is None:
            raise error
        log.warning("no room for copies in %s (%s): version %s is read from the store", self._folder, error, digest)
        return files

    def drop(self, digest: str) -> None:
        """Delete a copy, also one that is read: what reads it has its files open, or meets FileNotFoundError."""
        if (copy := self._copies.pop(digest)) is not None:
            self._delete(copy)

    def _known(self, digest: str, turn: Turn) -> Copy | None:
        """A copy that is there, in use until `done`; one that is not good is dropped."""
        copy = self._copies.get(digest, use=True)
        try:
            if copy is None or self._good(digest, copy, turn):
                return copy
        except BaseException:
            self._copies.done(digest)
            raise
        self.drop(digest)
        return None

    def _good(self, digest: str, copy: Copy, turn: Turn) -> bool:
        """Whether a copy is there and what its digest says, asked once for one that was found at the start."""
        if not copy.verified:
            with suppress(OSError, ValueError, Rejected):
                copy.verified = Manifest.of(copy.folder, turn).digest == digest
        return copy.verified and copy.folder.is_dir()

    @contextmanager
    def _fetched(self, digest: str, turn: Turn) -> Iterator[tuple[Path, Manifest]]:
        """A version's files in a folder that is gone after the block, unless it was moved."""
        with ExitStack() as stack:
            with self.tally.timed():
                manifest = self._store.manifest(digest)
                if manifest.size > self.limit:
                    raise TooLarge(manifest.size, "the disk cache", self.limit)
                self._delete(*(copy for _, copy in self._copies.promise(manifest.size)))
                stack.callback(self._copies.withdraw, manifest.size)
                part = stack.enter_context(self._part())
                self._store.fetch(digest, part, manifest, turn)
            yield part, manifest

    @contextmanager
    def _part(self) -> Iterator[Path]:
        """A folder of our own to fetch into; gone after the block, or swept by the next engine if we are killed."""
        part = self._folder / f".part-{uuid.uuid4().hex}"
        with self._locked():
            part.mkdir()
            lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield part
        finally:
            os.close(lock)
            shutil.rmtree(part, ignore_errors=True)

    def _publish(self, part: Path, final: Path, manifest: Manifest) -> None:
        try:
            part.rename(final)
        except OSError:  # another engine, or a copy that was found broken
            if Manifest.of(final).digest != manifest.digest:
                raise Corrupt(f"{final} is in the way, and not what its name says") from None

    def _delete(self, *copies: Copy) -> None:
        for copy in copies:
            gone = self._folder / f".gone-{uuid.uuid4().hex}"
            with suppress(OSError):  # another engine may have been first
                copy.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _sweep(self) -> None:
        """Take away what killed engines left."""
        with self._locked():
            for left in [*self._folder.glob(".part-*"), *self._folder.glob(".gone-*")]:
                try:
                    lock = os.open(left, os.O_RDONLY)
                except FileNotFoundError:
                    continue
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
                except BlockingIOError:
                    pass  # somebody is at it
                finally:
                    os.close(lock)

    def _find(self) -> None:
        """Know the copies of earlier runs, the last used last; each is verified when it is first read."""
        found: list[tuple[float, int, Path]] = []
        for folder in self._folder.glob("sha256-*"):
            with suppress(FileNotFoundError):
                if is_digest(_digest(folder)):
                    used, size = folder.stat().st_mtime, sum(file.stat().st_size for file in folder.iterdir())
                    found.append((used, size, folder))
        for _, size, folder in sorted(found):
            if size > self.limit:
                self._delete(Copy(folder, verified=False))
            self._delete(*(old for _, old in self._copies.put(_digest(folder), Copy(folder, verified=False), size)))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _path(self, digest: str) -> Path:
        return self._folder / digest.replace(":", "-")


def _digest(folder: Path) -> str:
    return folder.name.replace("-", ":", 1)
