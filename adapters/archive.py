"""Knows how to take an adapter's two files out of an untrusted .zip or .tar.gz; never what is in them.

An archive is gone through twice: all members are judged by name, kind and size before a byte is written, and of the
folder that holds the adapter only the two files are. An archive's paths never reach the file system. Sizes are counted
while unpacking, since what an archive claims may be a lie.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final, Protocol

from adapters.errors import Rejected
from adapters.files import CHUNK, CONFIG, EXPECTED, WEIGHTS, open_regular
from adapters.limits import DEFAULT, KIB, MIB, Limits
from adapters.selection import choose

_FREE: Final = 4 * MIB
"""Unpacking to this much is never a bomb: text and zeros shrink a lot."""
_ZIP_END: Final = 22
_ZIP64_LOCATOR: Final = 20
_ZIP_ENTRY: Final = 400  # bytes of one in the directory, with a path of usual length
_MEMBER_HEADERS: Final = 16 * KIB
_PATH: Final = 1_000  # characters
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
)

Parts = tuple[str, ...]
"""A member's path: its folders and its name."""


@dataclass(frozen=True)
class _Member:
    parts: Parts
    size: int
    open: Callable[[], IO[bytes]]


Members = Callable[[IO[bytes], Limits], Generator[_Member]]
"""The plain files of an archive, each judged. Raises Rejected."""


def unpack(source: Path, into: Path, limits: Limits = DEFAULT) -> tuple[str, ...]:
    """Write the adapter's two files from the archive at `source` into the folder `into`; return what else there was.

    They lie together in any folder, above those of all other adapters (checkpoints) in the archive. Raises Rejected for
    anything else, and then `into` is as it was before; raises FileExistsError rather than replace a file.
    """
    with _all_or_nothing(into) as written, open_regular(source) as stream:
        try:
            members = _kind(stream)
            packed = os.fstat(stream.fileno()).st_size
            paths = _listed(members, stream, packed, limits)
            folder = choose(paths)
            _check_spellings(folder, paths)
            _extract(members, stream, folder, _Target(into, written, packed, limits))
        except NotImplementedError as error:
            raise _damaged("it uses a compression that isn't taken") from error
        except _UNREADABLE as error:
            raise _damaged(str(error) or type(error).__name__) from error
        taken = [(*folder, name) for name in EXPECTED]
        return tuple("/".join(path) for path in paths if path not in taken and not _is_litter(path))


def _kind(stream: IO[bytes]) -> Members:
    magic = stream.read(4)
    if magic.startswith(b"PK\x03\x04"):
        return _zip_members
    if magic.startswith(b"\x1f\x8b"):
        return _tar_members
    message = f"The upload is neither a .zip nor a .tar.gz; upload one of those, or {CONFIG} and {WEIGHTS}."
    raise Rejected.because("unknown-archive", message)


def _listed(members: Members, stream: IO[bytes], packed: int, limits: Limits) -> list[Parts]:
    """The paths of all files. Raises Rejected where they would take more than an archive of this size may."""
    paths, left = [], max(_FREE, limits.ratio * packed)
    stream.seek(0)
    for member in members(stream, limits):
        paths.append(member.parts)
        left -= member.size
        if left < 0:
            message = f"The archive unpacks to more than {limits.ratio} times its size; upload the two files instead."
            raise Rejected.because("archive-bomb", message, expected=f"at most {limits.ratio} times {packed} bytes")
    return paths


def _check_spellings(folder: Parts, paths: list[Parts]) -> None:
    """Two files that some file systems would take for one leave open which of them is meant."""
    spelt = [path[-1] for path in paths if path[:-1] == folder and path[-1].casefold() in EXPECTED]
    if len(spelt) > len(EXPECTED):
        message = "The archive has a file of the adapter more than once, or in several spellings; pack each once."
        raise Rejected.because("duplicate-name", message, found=", ".join(spelt))


def _extract(members: Members, stream: IO[bytes], folder: Parts, target: _Target) -> None:
    missing = {(*folder, name) for name in EXPECTED}
    stream.seek(0)
    with closing(members(stream, target.limits)) as found:
        for member in found:
            if member.parts in missing:
                target.take(member)
                missing.remove(member.parts)
            if not missing:
                return


@contextmanager
def _all_or_nothing(into: Path) -> Iterator[list[Path]]:
    """Collects the paths that are created; takes them away again, and `into` if it is new, when the block fails."""
    written: list[Path] = []
    new = not into.exists()
    into.mkdir(mode=0o700, exist_ok=True)
    try:
        yield written
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        if new:
            into.rmdir()
        raise


class _Target:
    """Where the adapter's files are written, within what an archive of `packed` bytes may unpack to."""

    def __init__(self, into: Path, written: list[Path], packed: int, limits: Limits) -> None:
        self.limits = limits
        self._into = into
        self._written = written
        self._most = min(limits.total, max(_FREE, limits.ratio * packed))
        self._spent = 0

    def take(self, member: _Member) -> None:
        """Write a new file of exactly the size that is announced. Raises Rejected."""
        path = self._into / member.parts[-1]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._written.append(path)
        with os.fdopen(descriptor, "wb") as target, member.open() as source:
            count = 0
            while chunk := source.read(CHUNK):
                self._spend(len(chunk))
                count += target.write(chunk)
        if count != member.size:
            raise _damaged(f"{path.name} has {count} bytes where {member.size} are announced")

    def _spend(self, count: int) -> None:
        self._spent += count
        if self._spent > self._most:
            rule = "too-large" if self._most == self.limits.total else "archive-bomb"
            message = f"The two files unpack to more than the {self._most} bytes allowed; upload them instead."
            raise Rejected.because(rule, message, expected=f"at most {self._most} bytes")


def _parts(path: str, folder: bool) -> Parts:
    """The folders and the name in a member's path. Raises Rejected on every path that isn't plainly relative."""
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    absolute = path.startswith("/") or "\\" in path or path[1:2] == ":"
    if absolute or ".." in parts or not path.isprintable() or not (parts or folder) or len(path) > _PATH:
        message = f"The archive's path {path} isn't a plain relative one; pack the files by relative names."
        raise Rejected.because("path", message, found=path)
    return parts


def _is_litter(path: Parts) -> bool:
    """What macOS adds to archives on its own."""
    return path[0] == "__MACOSX" or path[-1].startswith("._") or path[-1] == ".DS_Store"


class _Count:
    """How many members there may still be."""

    def __init__(self, limits: Limits) -> None:
        self._left = self._most = limits.members

    def next(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Rejected.because("too-many-members", f"The archive has more than {self._most} members.")


# --- zip --------------------------------------------------------------------------------------------------------------


def _zip_members(stream: IO[bytes], limits: Limits) -> Generator[_Member]:
    _check_directory(stream, limits)
    count = _Count(limits)
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            count.next()
            folder = info.orig_filename.endswith("/")
            _check_kind(info, folder)
            parts = _parts(info.orig_filename, folder)
            if not folder:
                archive.open(info).close()  # its own header must say the same
                yield _Member(parts, info.file_size, partial(archive.open, info))


def _check_kind(info: zipfile.ZipInfo, folder: bool) -> None:
    if info.flag_bits & 1:
        raise Rejected.because("encrypted", "The archive is encrypted; upload it without a password.")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
        raise _special(info.orig_filename)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _damaged("it uses a compression that isn't taken")


def _check_directory(stream: IO[bytes], limits: Limits) -> None:
    """Refuse a central directory that can't be an adapter's before zipfile reads it into memory."""
    size = stream.seek(0, os.SEEK_END)
    start = max(0, size - _ZIP_END - _ZIP64_LOCATOR)
    stream.seek(start)
    tail = stream.read()
    end = tail[-_ZIP_END:]
    stream.seek(0)
    if not end.startswith(b"PK\x05\x06"):
        raise _damaged("it doesn't end as a zip file without comment does")
    if tail[:-_ZIP_END].startswith(b"PK\x06\x07"):
        raise _damaged("zip64 isn't taken, so use .tar.gz")
    listing, position = struct.unpack("<II", end[12:20])
    if listing > limits.members * _ZIP_ENTRY:
        raise Rejected.because("too-many-members", "The archive lists too many members; pack the two files alone.")
    if listing + position + _ZIP_END != size:
        raise _damaged("its parts don't add up to its size")


# --- tar.gz -----------------------------------------------------------------------------------------------------------


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Metered(io.RawIOBase):
    """A stream that gives no more than was allowed, since tarfile reads any header into memory."""

    def __init__(self, source: _Readable) -> None:
        self._source = source
        self._left = 0

    def allow(self, count: int) -> None:
        self._left = count

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "tarfile reads blocks"
        if size > self._left:
            raise Rejected.because(
                "header-too-large", "A member's header in the archive is too large; pack the files plainly."
            )
        data = self._source.read(size)
        self._left -= len(data)
        return data


def _tar_members(stream: IO[bytes], limits: Limits) -> Generator[_Member]:
    count = _Count(limits)
    with gzip.GzipFile(fileobj=stream, mode="rb") as plain:
        metered = _Metered(plain)
        metered.allow(_MEMBER_HEADERS)
        with tarfile.open(fileobj=metered, mode="r|", bufsize=tarfile.BLOCKSIZE) as archive:
            while (member := archive.next()) is not None:
                count.next()
                metered.allow(max(0, member.size) + _MEMBER_HEADERS)
                parts = _parts(member.name, member.isdir())
                if not member.isdir():
                    _check_type(member)
                    yield _Member(parts, member.size, partial(_content, archive, member))
                metered.allow(max(0, member.size) + _MEMBER_HEADERS)
        _check_rest(plain)


def _check_type(member: tarfile.TarInfo) -> None:
    if member.issparse() or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size < 0:
        raise _special(member.name)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    return content


def _check_rest(plain: _Readable) -> None:
    """After the last member only a few zeros may follow; reading them checks the gzip stream's own checksum."""
    left = _FREE
    while chunk := plain.read(CHUNK):
        left -= len(chunk)
        if chunk.strip(b"\0") or left < 0:
            raise _damaged("something follows its last member")


def _special(name: str) -> Rejected:
    return Rejected.because(
        "link",
        f"{name} in the archive isn't a plain file; pack what links lead to (tar -h), and no devices.",
        found=name,
    )


def _damaged(why: str) -> Rejected:
    return Rejected.because("malformed-archive", f"The archive can't be read: {why}; pack the two files again.")
