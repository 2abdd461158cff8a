"""Knows how to take an adapter's files out of an untrusted .zip or .tar.gz; never what is in them.

Members are judged one by one before a byte of them is written, and only the expected names are ever created: an
archive's paths never reach the file system. Sizes are counted while unpacking, since what an archive claims may be
a lie.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Protocol

from adapters.errors import Rejected
from adapters.files import CHUNK, CONFIG, DROPPED, EXPECTED, WEIGHTS, missing, open_regular, unexpected
from adapters.limits import DEFAULT, KIB, MIB, Limits

_FREE: Final = 4 * MIB
"""Unpacking to this much is never a bomb: text and zeros shrink a lot."""
_ZIP_END: Final = 22
_ZIP64_LOCATOR: Final = 20
_MEMBER_HEADERS: Final = 16 * KIB
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


def unpack(source: Path, into: Path, limits: Limits = DEFAULT) -> tuple[Path, ...]:
    """Write the adapter's two files from the archive at `source` into the folder `into`; return their paths.

    The files may lie at the archive's root or together in one folder. Raises Rejected for anything else, and then
    `into` is as it was before; raises FileExistsError rather than replace a file.
    """
    with _all_or_nothing(into) as written, open_regular(source) as stream:
        target = _Target(into, written, _Allowance(limits, os.fstat(stream.fileno()).st_size), limits)
        try:
            _unpack(stream, target)
        except NotImplementedError as error:
            raise _damaged("it uses a compression that isn't taken") from error
        except _UNREADABLE as error:
            raise _damaged(str(error) or type(error).__name__) from error
        target.finish()
        return tuple(into / name for name in EXPECTED)


def _unpack(stream: IO[bytes], target: _Target) -> None:
    magic = stream.read(4)
    stream.seek(0)
    if magic.startswith(b"PK\x03\x04"):
        _unzip(stream, target)
    elif magic.startswith(b"\x1f\x8b"):
        _untar(stream, target)
    else:
        message = f"The upload is neither a .zip nor a .tar.gz; upload one of those, or {CONFIG} and {WEIGHTS}."
        raise Rejected.because("unknown-archive", message)


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


class _Allowance:
    """How many bytes may still be unpacked."""

    def __init__(self, limits: Limits, packed: int) -> None:
        self._limits = limits
        self._most = min(limits.total, max(_FREE, limits.ratio * packed))
        self._spent = 0

    def spend(self, count: int) -> None:
        self._spent += count
        if self._spent > self._most:
            rule = "too-large" if self._most == self._limits.total else "archive-bomb"
            message = (
                f"The archive unpacks to more than the {self._most} bytes allowed for it; upload the two files instead."
            )
            raise Rejected.because(rule, message, expected=f"at most {self._most} bytes")


class _Target:
    """Judges members by name, then writes the expected ones."""

    def __init__(self, into: Path, written: list[Path], allowance: _Allowance, limits: Limits) -> None:
        self._into = into
        self._written = written
        self._allowance = allowance
        self._limits = limits
        self._members = 0
        self._folder: list[str] | None = None
        self._seen: set[str] = set()

    def enter(self, path: str) -> str | None:
        """The name to write a file under, or None if it is to be passed over. Raises Rejected."""
        *folders, name = self._parts(path) or [""]
        if _is_litter(folders, name):
            return None
        if len(folders) > 1:
            raise Rejected.because("path", f"{path} lies too deep; put both files at the archive's root.", found=path)
        if self._folder not in (None, folders):
            raise Rejected.because(
                "path", f"{path} lies apart from the other file; put both in one folder.", found=path
            )
        self._folder = folders
        if name.casefold() in self._seen:
            message = f"The archive has {name} more than once, or in several spellings; pack each file once."
            raise Rejected.because("duplicate-name", message, found=path)
        self._seen.add(name.casefold())
        if name not in DROPPED and name not in EXPECTED:
            raise Rejected([unexpected(name)])
        return None if name in DROPPED else name

    def pass_folder(self, path: str) -> None:
        """Folders are never made; an archive may list the one that its files are in. Raises Rejected."""
        if len(self._parts(path)) > 1:
            raise Rejected.because("path", f"{path} lies too deep; put both files at the archive's root.", found=path)

    def _parts(self, path: str) -> list[str]:
        self._members += 1
        if self._members > self._limits.members:
            raise Rejected.because("too-many-members", f"The archive has more than {self._limits.members} members.")
        return _parts(path)

    def take(self, name: str | None, source: IO[bytes], size: int) -> None:
        """Read `source`, of exactly `size` bytes, into a new file; to nowhere without a name. Raises Rejected."""
        count = self.drain(source) if name is None else self._write(name, source)
        if count != size:
            raise _damaged(f"{name or 'a file'} has {count} bytes where {size} are announced")

    def _write(self, name: str, source: IO[bytes]) -> int:
        path = self._into / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._written.append(path)
        with os.fdopen(descriptor, "wb") as target:
            return self.drain(source, target)

    def drain(self, source: IO[bytes], target: IO[bytes] | None = None) -> int:
        """Read `source` to its end within the allowance; return the number of bytes."""
        count = 0
        while chunk := source.read(CHUNK):
            self._allowance.spend(len(chunk))
            count += len(chunk)
            if target is not None:
                target.write(chunk)
        return count

    def finish(self) -> None:
        absent = [missing(name) for name in EXPECTED if self._into / name not in self._written]
        if absent:
            raise Rejected(absent)


def _parts(path: str) -> list[str]:
    """The folders and the name in a member's path. Raises Rejected on every path that isn't plainly relative."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    absolute = path.startswith("/") or "\\" in path or ":" in path
    if absolute or ".." in parts or not path.isprintable() or not path.isascii():
        message = f"The archive's path {path} isn't a plain relative one; pack the two files by their names alone."
        raise Rejected.because("path", message, found=path)
    return parts


def _is_litter(folders: list[str], name: str) -> bool:
    """What macOS adds to archives on its own."""
    return folders[:1] == ["__MACOSX"] or name.startswith("._") or name == ".DS_Store"


# --- zip --------------------------------------------------------------------------------------------------------------


def _unzip(stream: IO[bytes], target: _Target) -> None:
    _check_directory(stream)
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            folder = info.orig_filename.endswith("/")
            _check_kind(info, folder)
            if folder:
                target.pass_folder(info.orig_filename)
                continue
            name = target.enter(info.orig_filename)
            with archive.open(info) as member:
                target.take(name, member, info.file_size)


def _check_kind(info: zipfile.ZipInfo, folder: bool) -> None:
    if info.flag_bits & 1:
        raise Rejected.because("encrypted", "The archive is encrypted; upload it without a password.")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
        raise _special(info.orig_filename)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _damaged("it uses a compression that isn't taken")


def _check_directory(stream: IO[bytes]) -> None:
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
    if listing > 64 * KIB:
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


def _untar(stream: IO[bytes], target: _Target) -> None:
    with gzip.GzipFile(fileobj=stream, mode="rb") as plain:
        metered = _Metered(plain)
        metered.allow(_MEMBER_HEADERS)
        with tarfile.open(fileobj=metered, mode="r|", bufsize=tarfile.BLOCKSIZE) as archive:
            while (member := archive.next()) is not None:
                metered.allow(max(0, member.size) + _MEMBER_HEADERS)
                _take(archive, member, target)
                metered.allow(_MEMBER_HEADERS)
        _check_rest(plain, target)


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, target: _Target) -> None:
    if member.isdir():
        target.pass_folder(member.name)
        return
    if member.issparse() or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size < 0:
        raise _special(member.name)
    name = target.enter(member.name)
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    target.take(name, content, member.size)


def _check_rest(plain: _Readable, target: _Target) -> None:
    """After the last member only zeros may follow; reading them checks the gzip stream's own checksum."""
    while chunk := plain.read(CHUNK):
        target.drain(io.BytesIO(chunk))
        if chunk.strip(b"\0"):
            raise _damaged("something follows its last member")


def _special(name: str) -> Rejected:
    return Rejected.because(
        "link", f"{name} in the archive isn't a plain file; pack files, not links or devices.", found=name
    )


def _damaged(why: str) -> Rejected:
    return Rejected.because("malformed-archive", f"The archive can't be read: {why}; pack the two files again.")
