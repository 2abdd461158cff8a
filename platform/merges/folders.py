"""Knows where merges keep files; nothing of what is in them.

<home>/merges/<merge id>/sources/<number>    the adapters that are merged, while a worker is at it
<home>/merges/<merge id>/result.plan         of what plan the result's finished parts are
<home>/merges/<merge id>/result              what is made of them; a merged model stays here until it expires
"""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from django.conf import settings


def root() -> Path:
    home: Path = settings.LORAYARD.home
    return home / "merges"


def result(merge: UUID) -> Path:
    return root() / str(merge) / "result"


def sources(merge: UUID) -> Path:
    """An empty folder for the adapters that are merged."""
    folder = root() / str(merge) / "sources"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return folder


def written(merge: UUID) -> int:
    """Bytes of its result that are there already. A worker may be writing it, or taking it away."""
    size = 0
    with suppress(FileNotFoundError):
        for path in result(merge).iterdir():
            with suppress(FileNotFoundError):
                size += path.stat().st_size
    return size


def keep_result(merge: UUID) -> None:
    """Remove all but the result."""
    for path in result(merge).parent.iterdir():
        if path != result(merge):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def discard(merge: UUID) -> None:
    shutil.rmtree(root() / str(merge), ignore_errors=True)


def sweep(keep: Iterable[UUID]) -> int:
    """Remove the folders of all merges but `keep`, which may be a query. Returns how many."""
    found = list(root().iterdir()) if root().is_dir() else []
    kept = {str(merge) for merge in keep}  # asked after, so that a merge that was just taken in is among them
    left = [path for path in found if path.name not in kept]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return len(left)


def free() -> int:
    """Bytes that are left on the disk."""
    root().mkdir(parents=True, exist_ok=True, mode=0o700)
    return shutil.disk_usage(root()).free
